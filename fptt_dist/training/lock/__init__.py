"""One process at a time writes into a directory."""
