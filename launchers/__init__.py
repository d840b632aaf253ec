"""Launchers that start the workers: one module per launcher, imported when its subcommand is called."""
