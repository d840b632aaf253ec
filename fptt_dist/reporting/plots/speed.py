"""Plots of throughput and memory."""

from textwrap import fill

from fptt_dist.history import History
from fptt_dist.reporting.plots.canvas import new_figure
from fptt_dist.reporting.plots.lines import lines
from fptt_dist.reporting.plots.series import field, mean
from fptt_dist.reporting.plots.style import (
    TEXT,
    WIDTH,
    Plot,
    bytes_unit,
    name_axes,
    number,
    plain_numbers,
)
from fptt_dist.reporting.plots.subject import Subject
from fptt_dist.reporting.runs.groups import Group

SECTION = "Speed"
LABEL_CHARACTERS = 36  # of a line beside a bar
DIFFERENT = "The runs used different hardware, so compare with care."
MEMORY = {
    "cpu": "Peak resident memory of rank 0's process, the Python program and its libraries included.",
    "gpu": "Peak memory in use by torch's allocator on the GPU of rank 0.",
}


def speed(subject: Subject) -> list[Plot]:
    """Plot sequences per second and time spent waiting for data over training, and peak memory of CPUs and GPUs."""
    runs = [run for each in subject.looks for run in each.group.runs]
    hardware = {(run.versions.get("processor"), run.versions.get("gpu")) for run in runs if run.versions}
    throughput = lines(
        subject.looks,
        field("sequences_per_second"),
        name=f"speed_throughput{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: throughput",
        caption="Sequences per second over all workers, for the recorded batch. Higher is faster."
        + (f" {DIFFERENT}" if len(hardware) > 1 else ""),
        quantity="sequences per second",
        log=False,
        from_zero=True,
    )
    waiting = lines(
        subject.looks,
        field("data_wait"),
        name=f"speed_data_wait{subject.suffix}",
        section=SECTION,
        title=f"{subject.title}: time spent waiting for data",
        caption="Share of the training time that rank 0 waited for its training batches, since the previous record. "
        "Where it is large, data.workers puts them together ahead of time.",
        quantity="waiting for data, share of the training time",
        log=False,
        from_zero=True,
    )
    memory = [_memory(subject, kind) for kind in MEMORY]
    return [plot for plot in (throughput, waiting, *memory) if plot is not None]


def _memory(subject: Subject, kind: str) -> Plot | None:
    """Plot a bar for each group with runs on this kind of device; None where there is none."""
    found = [(each.style, _peaks(each.group, kind)) for each in subject.looks]
    found = [(style, peaks) for style, peaks in found if peaks]
    if not found:
        return None
    size, unit = bytes_unit(max(max(peaks) for _, peaks in found))
    figure = new_figure(WIDTH, 1.3 + 0.36 * len(found))
    axes = figure.add_subplot()
    most = max(max(peaks) for _, peaks in found) / size
    for place, (style, peaks) in enumerate(found):
        axes.barh(place, mean(peaks) / size, height=0.6, color=style.color, alpha=0.75)
        if len(peaks) > 1:
            axes.plot([min(peaks) / size, max(peaks) / size], [place, place], "|-", color="black", markersize=8)
        text = f"{mean(peaks) / size:.3g}" if size > 1 else number(mean(peaks))
        axes.text(max(peaks) / size + 0.02 * most, place, text, va="center", fontsize=TEXT - 1)
    axes.set_xlim(0, 1.12 * most)
    axes.grid(visible=True, axis="x", color="0.9")
    axes.set_axisbelow(True)
    plain_numbers(axes)
    axes.set_yticks(range(len(found)), [fill(style.label, LABEL_CHARACTERS) for style, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.6)  # the first on top
    axes.tick_params(labelsize=TEXT)
    device = {"cpu": "process", "gpu": "GPU"}[kind]
    name_axes(axes, f"memory of the {device} ({unit})", "group")
    title = f"{subject.title}: memory of the {device}"
    axes.set_title(title)
    caption = MEMORY[kind]
    if any(len(peaks) > 1 for _, peaks in found):
        caption += " Bar: mean over the seeds; black line: from the smallest to the largest."
    name = f"speed_memory_{kind}{subject.suffix}"
    return Plot(name, SECTION, title, caption, figure)


def _peaks(group: Group, kind: str) -> list[float]:
    """Return the peak memory of each run on this kind of device."""
    runs = [run for run in group.runs if _device(run) == kind]
    sizes = [[float(record["memory_bytes"]) for record in run.training if "memory_bytes" in record] for run in runs]
    return [max(each) for each in sizes if each]


def _device(run: History) -> str:
    """Return "gpu" or "cpu", from the configuration or else from the recorded hardware."""
    chosen = run.config.get("device", "auto")
    if chosen != "auto":
        return "gpu" if chosen == "cuda" else "cpu"
    return "cpu" if run.versions.get("gpu", "none") == "none" else "gpu"
