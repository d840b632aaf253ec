"""Rules of synchronization: of what, and when."""
