"""Hostile plan files, databases, tasks and calls, each a case with what must come of it."""
