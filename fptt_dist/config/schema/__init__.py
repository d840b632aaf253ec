"""Every key: type, range, default and meaning."""
