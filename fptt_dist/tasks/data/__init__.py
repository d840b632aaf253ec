"""Data sets: download, checks and readers."""
