"""The convergence picture: validation metric against training sequences."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fptt_dist.reporting.history import History

# Okabe & Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
CHANCE = {"adding": 1.0 / 6.0}  # the metric of always predicting the targets' mean


def draw_convergence(runs: list[History], path: Path) -> Path:
    """Draw one line a run, and write a PNG (1600 × 1000 pixels).

    Args:
        runs: of the same task, for a picture that makes sense.
        path: the file; its folder is created.

    Returns:
        The file's path.
    """
    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    metrics: set[str] = set()
    for number, run in enumerate(runs):
        points = [(e["sequences"], e["value"]) for e in run.evaluations if e["split"] == "validation"]
        if points:
            metrics.add(run.evaluations[0]["metric"])
            axes.plot(
                *zip(*points, strict=True),
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number // len(COLOURS) % len(LINES)],
                linewidth=2,
                marker="o",
                markersize=3,
                label=run.label,
            )
    tasks = {run.config["task"]["name"] for run in runs}
    lengths = {run.config["task"].get("length") for run in runs}
    for task in tasks & CHANCE.keys():
        axes.axhline(CHANCE[task], color="0.4", linewidth=1, linestyle=(0, (1, 2)), label="always predicting the mean")
    if "mse" in metrics:
        axes.set_yscale("log")
    axes.set_xlabel("training sequences")
    axes.set_ylabel(f"validation {', '.join(sorted(metrics))}" if metrics else "validation metric")
    steps = f", {lengths.pop()} steps" if len(lengths) == 1 and None not in lengths else ""
    axes.set_title(f"{', '.join(sorted(tasks))}{steps}")
    axes.grid(visible=True, which="both", color="0.9")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
