"""The version: here, where no other file of the package is needed to read it."""

__version__ = "0.1.0"
