"""Checks of a model, a plan, or this machine; nothing is searched."""
