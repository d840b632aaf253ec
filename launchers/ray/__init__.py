"""Ray Tune and Ray Train."""
