"""Files, overrides and the messages about them."""
