"""Empty figures, and their files."""

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fptt_dist.files import write_atomic


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; `width` and `height` in inches."""
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure | None, path: Path) -> Path | None:
    """Write a figure atomically as PNG; without a figure, delete the old file."""
    if figure is None:
        path.unlink(missing_ok=True)
        return None
    memory = io.BytesIO()
    figure.savefig(memory, format="png")
    write_atomic(path, memory.getvalue(), parents=True)
    return path
