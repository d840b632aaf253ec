"""Draw what each worker holds and what is communicated, for each parallel strategy:

    python docs/figures/draw_parallel.py [FOLDER]

N is the number of parameters. The megabytes are those of convergence.md, "MNIST by rows": an LSTM-128, K = 7, H = K.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from drawing import EQUAL, GREY, OWN, SENT, SHARD, arrow, box, frame, legend, picture, save, text
from matplotlib.axes import Axes

WORKERS = 3
COLUMN, GAP, LEFT = 232, 22, 30  # widths of a worker's column, of the space between, and of the margin
SUBSCRIPTS = "₀₁₂₃"
MEANINGS = ((EQUAL, "equal on all", 130), (OWN, "each has its own", 320), (SENT, "communicated", 560))


def column(worker: int) -> float:
    """Return the left end of a worker's column."""
    return LEFT + worker * (COLUMN + GAP)


def chips(axes: Axes, x: float, y: float, names: Sequence[tuple[str, str]], room: float = COLUMN) -> None:
    """Draw boxes side by side, (name, color) each; a longer name gets more room."""
    lengths = [2.0 + len(name.replace("\u0304", "")) for name, _ in names]
    free = room - 20 - 6 * (len(names) - 1)
    at = x + 10
    for (name, color), length in zip(names, lengths, strict=True):
        width = free * length / sum(lengths)
        box(axes, at, y, width, 34, name, color)
        at += width + 6


def worker(axes: Axes, number: int, y: float, height: float, share: str) -> None:
    """Draw the frame of a worker with its name and its share of the data."""
    x = column(number)
    frame(axes, x, y, COLUMN, height)
    text(axes, x + COLUMN / 2, y + 20, f"worker {number}", bold=True)
    text(axes, x + COLUMN / 2, y + 44, share, size=14, color=GREY)


def bus(axes: Axes, y: float, top: float, words: str, cost: str) -> None:
    """Draw what all workers send and receive: a bar below the columns, an arrow from each."""
    box(axes, LEFT, y, 800 - 2 * LEFT, 66, "", SENT)
    text(axes, 400, y + 21, words, bold=True)
    text(axes, 400, y + 47, cost, size=15)
    for number in range(WORKERS):
        arrow(axes, (column(number) + COLUMN / 2, top), (column(number) + COLUMN / 2, y), SENT, both=True)


def draw_gradient(path: Path) -> Path:
    """Draw `data_parallel`: all state is equal on all workers, g is communicated at every update."""
    figure, axes = picture(316)
    for number in range(WORKERS):
        worker(axes, number, 16, 148, "its third of each batch")
        chips(axes, column(number), 76, [("W", EQUAL), ("W̄", EQUAL), ("u", EQUAL), ("opt. state", EQUAL)])
        chips(axes, column(number), 118, [(f"g{SUBSCRIPTS[number]}, its local gradient", OWN)])
    bus(
        axes,
        206,
        166,
        "at every update: g ← mean of g₀, g₁, g₂",
        "N values, K times per batch: K copies of the model (2.30 MB)",
    )
    legend(axes, 294, MEANINGS)
    return save(figure, path)


def draw_shared(path: Path) -> Path:
    """Draw `consensus` with `dual: averaged`: local state on each worker, synchronized every H updates."""
    figure, axes = picture(350)
    for number in range(WORKERS):
        i = SUBSCRIPTS[number]
        worker(axes, number, 16, 182, "its third of each batch")
        chips(axes, column(number), 76, [(f"W{i}", OWN), (f"W̄{i}", OWN), (f"u{i}", OWN), ("opt. state", OWN)])
        box(axes, column(number) + 10, 122, COLUMN - 20, 64, "H local updates,\nno communication", GREY, dashed=True)
    bus(
        axes, 240, 200, "every H updates: W, W̄, u ← their means",
        "3 N values, K/H times per batch: 3 K/H copies (H = K: 0.99 MB)",
    )  # fmt: skip
    legend(axes, 328, ((OWN, "each has its own", 210), (SENT, "communicated", 470)))
    return save(figure, path)


def draw_worker(path: Path) -> Path:
    """Draw `consensus` with `dual: local`: a local dual on each worker, around one Z."""
    figure, axes = picture(424)
    for number in range(WORKERS):
        i = SUBSCRIPTS[number]
        worker(axes, number, 16, 226, "its own partition (fixed)")
        chips(axes, column(number), 76, [(f"W{i}", OWN), (f"W̄{i}", OWN), (f"u{i}", OWN), ("opt. state", OWN)])
        chips(axes, column(number), 118, [(f"μ{i}, its local dual", OWN), ("Z", EQUAL), ("μ̄", EQUAL)])
        box(
            axes, column(number) + 10, 164, COLUMN - 20, 66, f"H local updates,\nconsensus term: Z, μ{i}", GREY,
            size=15, dashed=True,
        )  # fmt: skip
    bus(
        axes, 284, 244, "every H updates: mean of W, and one value s² for the strength A",
        "N + 1 values, K/H times per batch: K/H copies (H = K: 0.33 MB)",
    )  # fmt: skip
    text(axes, 400, 370, "then μ, Z and μ̄ are updated;  W, W̄ ← Z  and  u ← 0", size=15)
    legend(axes, 402, MEANINGS)
    return save(figure, path)


def draw_hierarchical(path: Path) -> Path:
    """Draw `hierarchical`: averaged gradients within a node, syncs between nodes."""
    figure, axes = picture(474)
    tops = (16, 284)
    for node, top in enumerate(tops):
        frame(axes, 30, top, 740, 128)
        text(axes, 46, top + 20, f"node {node}", bold=True, align="left")
        for place in range(2):
            x = 56 + place * 450
            box(axes, x, top + 40, 240, 74, "", GREY)
            text(axes, x + 120, top + 58, f"worker {2 * node + place}", size=15)
            i = "ᵃᵇ"[node]
            chips(axes, x, top + 74, [(f"W{i}", OWN), (f"W̄{i}", OWN), (f"u{i}", OWN), ("opt. state", OWN)], 240)
        arrow(axes, (300, top + 86), (502, top + 86), SENT, both=True)
        text(axes, 401, top + 52, "every update:\nmean of g", size=15)
        text(axes, 401, top + 106, "K copies", size=15)
    for place, half in enumerate(("first half", "second half")):
        x = 176 + place * 450
        arrow(axes, (x, 144), (x, 284), SENT, both=True)
        text(axes, x + (12 if place == 0 else -12), 166, half, size=14, align="left" if place == 0 else "right")
    box(axes, 190, 182, 420, 66, "", SENT)
    text(axes, 400, 203, "every H updates: W, W̄, u ← their means", bold=True)
    text(axes, 400, 229, "3 K/H copies, split over a node's workers", size=15)
    text(axes, 400, 436, "equal on all workers of a node (a, b), different between nodes", size=14, color=GREY)
    legend(axes, 458, ((OWN, "each node has its own", 130), (SENT, "communicated", 480)))
    return save(figure, path)


def draw_sharded(path: Path) -> Path:
    """Draw `fsdp` and the stages of `deepspeed` for three workers: what is held in full and what is sharded."""
    names = ("W, as the\nmodule has it", "gradient", "master W", "optimizer\nstate", "W̄, u")
    rows = (
        ("fsdp", (False, False, None, False, False), "all-gather W,\nreduce-scatter g:\n2 K times, K copies"),
        (
            "deepspeed 3",
            (False, False, False, False, False),
            "all-gather W twice,\nreduce-scatter g:\n3 K times, 1.5 K copies",
        ),
        (
            "deepspeed 2",
            (True, False, False, False, False),
            "reduce-scatter g,\nall-gather new W:\n2 K times, K copies",
        ),
        ("deepspeed 1", (True, True, False, False, False), "reduce-scatter g,\nall-gather new W:\n2 K times, K copies"),
    )
    figure, axes = picture(434)
    lefts = [140 + 88 * i for i in range(len(names))]
    for left, name in zip(lefts, names, strict=True):
        text(axes, left + 38, 30, name, size=14)
    text(axes, 686, 30, "communicated per batch", size=14)
    for row, (strategy, full, traffic) in enumerate(rows):
        top = 62 + row * 82
        text(axes, 14, top + 32, strategy, bold=True, align="left")
        for left, kept in zip(lefts, full, strict=True):
            for number in range(WORKERS):
                cell(axes, left, top + number * 22, number, kept)
        text(axes, 686, top + 32, traffic, size=14, color=SENT)
    text(
        axes,
        400,
        396,
        "In each cell a bar is a worker: 0, 1 and 2 from the top. White: not held.",
        size=14,
    )
    legend(axes, 420, ((EQUAL, "full, equal on all", 170), (SHARD, "a worker's shard", 430)))
    return save(figure, path)


def cell(axes: Axes, x: float, y: float, number: int, full: bool | None) -> None:
    """Draw one worker's bar: full, its shard of a third, or "none" where the strategy holds no such tensor."""
    width = 76
    if full is None:
        if number == 1:
            text(axes, x + width / 2, y + 9, "none", size=14, color=GREY)
        return
    frame(axes, x, y, width, 17)
    third = width / WORKERS
    if full:
        box(axes, x, y, width, 17, "", EQUAL)
    else:
        box(axes, x + number * third, y, third, 17, "", SHARD)


FIGURES = {
    "parallel_gradient.svg": draw_gradient,
    "parallel_shared.svg": draw_shared,
    "parallel_worker.svg": draw_worker,
    "parallel_hierarchical.svg": draw_hierarchical,
    "parallel_sharded.svg": draw_sharded,
}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for file, draw in FIGURES.items():
        print(draw(folder / file))
