"""The one exception of a user's mistake in a configuration."""


class ConfigError(Exception):
    """A user's mistake in a configuration; the program prints only its message and exits with code 2."""
