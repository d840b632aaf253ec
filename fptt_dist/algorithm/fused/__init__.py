"""The compiled update."""
