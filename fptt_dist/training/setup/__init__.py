"""Objects from a configuration, and its consistency over the workers."""
