"""Tables and pictures from the folders of runs and sweeps, and nothing else."""

from fptt_dist.reporting.history import History, last_words, read_runs
from fptt_dist.reporting.paper_figures import draw_alpha, draw_curves
from fptt_dist.reporting.paper_grid import grid_table
from fptt_dist.reporting.paper_grid_figure import draw_grid
from fptt_dist.reporting.paper_table import DYNAMIC, NOT_FINITE, PaperRow, PaperTable, paper_table
from fptt_dist.reporting.report_page import Report, make_report
from fptt_dist.reporting.sweep import SWEEP, TRIAL, is_sweep, read_sweep
from fptt_dist.reporting.sweep_files import write_sweep
from fptt_dist.reporting.sweep_results import Point, SweepResults, TrialRow
from fptt_dist.reporting.sweep_table import sweep_table
from fptt_dist.reporting.table import results_table

__all__ = [
    "DYNAMIC",
    "NOT_FINITE",
    "SWEEP",
    "TRIAL",
    "History",
    "PaperRow",
    "PaperTable",
    "Point",
    "Report",
    "SweepResults",
    "TrialRow",
    "draw_alpha",
    "draw_curves",
    "draw_grid",
    "grid_table",
    "is_sweep",
    "last_words",
    "make_report",
    "paper_table",
    "read_runs",
    "read_sweep",
    "results_table",
    "sweep_table",
    "write_sweep",
]
