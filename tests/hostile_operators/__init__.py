"""Random calls of the registered operators, valid and not, for ``hostile_calls.py``."""
