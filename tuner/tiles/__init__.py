"""Tile sizes by measurement, per shape class."""
