"""Tables and pictures from the folders of runs, and nothing else."""

from fptt_dist.reporting.convergence import draw_convergence
from fptt_dist.reporting.history import History, read_runs
from fptt_dist.reporting.table import results_table

__all__ = ["History", "draw_convergence", "read_runs", "results_table"]
