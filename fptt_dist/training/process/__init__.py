"""This process: signals, its parent, its files, the command that resumes it."""
