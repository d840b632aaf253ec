"""Placements: each says which worker holds which parameters."""
