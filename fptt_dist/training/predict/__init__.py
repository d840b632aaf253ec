"""Predictions of a trained network for new data: all at once, or step by step as the data come."""
