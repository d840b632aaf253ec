"""Checkpoints: contents, files, reading back."""
