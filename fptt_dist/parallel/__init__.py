"""Who holds what and what travels: launch environment, collectives, one file a strategy."""

from fptt_dist.parallel.collectives import process_group, wait_for_all
from fptt_dist.parallel.environment import LaunchEnvironment, resolve_environment
from fptt_dist.parallel.gradient import GradientAveraging
from fptt_dist.parallel.single import Single
from fptt_dist.parallel.strategy import Strategy

__all__ = [
    "GradientAveraging",
    "LaunchEnvironment",
    "Single",
    "Strategy",
    "process_group",
    "resolve_environment",
    "wait_for_all",
]
