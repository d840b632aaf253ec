"""A mistake in the data on disk."""


class DataError(Exception):
    """Missing, truncated or corrupt data; the message names the file, what was expected and what was found."""
