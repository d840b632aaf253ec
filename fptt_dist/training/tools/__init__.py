"""Subcommands beside training: dry run, memory estimates, dynamic evaluation, export."""
