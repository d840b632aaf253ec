"""A sweep's plan, search space and directory."""
