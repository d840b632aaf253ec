"""Results of a sweep."""
