"""Process groups, collectives and the launch environment."""
