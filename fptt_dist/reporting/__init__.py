"""Tables, figures and reports made from run and sweep directories alone."""

from fptt_dist.history import History, last_words, read_runs
from fptt_dist.reporting.html.page import Report, make_report
from fptt_dist.reporting.paper.figures import draw_alpha, draw_curves
from fptt_dist.reporting.paper.grid import grid_table
from fptt_dist.reporting.paper.grid_figure import draw_grid
from fptt_dist.reporting.paper.table import DYNAMIC, NOT_FINITE, PaperRow, PaperTable, paper_table
from fptt_dist.reporting.runs.table import results_table
from fptt_dist.reporting.sweeps.directory import SWEEP, TRIAL, is_sweep, read_sweep
from fptt_dist.reporting.sweeps.files import write_sweep
from fptt_dist.reporting.sweeps.results import Point, SweepResults, TrialRow
from fptt_dist.reporting.sweeps.table import sweep_table

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
