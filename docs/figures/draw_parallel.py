"""Draw who holds what and what travels, for each way to share out the work:

    python docs/figures/draw_parallel.py [FOLDER]

N is the number of parameters. The megabytes are those of convergence.md, "MNIST by rows": an LSTM-128, K = 7, H = K.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from drawing import EQUAL, GREY, OWN, PART, TRAVELS, arrow, box, frame, legend, picture, save, text
from matplotlib.axes import Axes

WORKERS = 3
COLUMN, GAP, LEFT = 232, 22, 30  # widths of a worker's column, of the space between, and of the margin
SUBSCRIPTS = "₀₁₂₃"
MEANINGS = ((EQUAL, "equal on all", 130), (OWN, "each has its own", 320), (TRAVELS, "travels", 560))


def column(worker: int) -> float:
    """Left end of a worker's column."""
    return LEFT + worker * (COLUMN + GAP)


def chips(axes: Axes, x: float, y: float, names: Sequence[tuple[str, str]], room: float = COLUMN) -> None:
    """Boxes side by side: (name, colour) each; a longer name gets more room."""
    lengths = [2.0 + len(name.replace("\u0304", "")) for name, _ in names]
    free = room - 20 - 6 * (len(names) - 1)
    at = x + 10
    for (name, colour), length in zip(names, lengths, strict=True):
        width = free * length / sum(lengths)
        box(axes, at, y, width, 34, name, colour)
        at += width + 6


def worker(axes: Axes, number: int, y: float, height: float, share: str) -> None:
    """The frame of a worker, its name and its share of the data."""
    x = column(number)
    frame(axes, x, y, COLUMN, height)
    text(axes, x + COLUMN / 2, y + 20, f"worker {number}", bold=True)
    text(axes, x + COLUMN / 2, y + 44, share, size=14, colour=GREY)


def bus(axes: Axes, y: float, top: float, words: str, cost: str) -> None:
    """What all send and get: a bar below the columns, an arrow from each."""
    box(axes, LEFT, y, 800 - 2 * LEFT, 66, "", TRAVELS)
    text(axes, 400, y + 21, words, bold=True)
    text(axes, 400, y + 47, cost, size=15)
    for number in range(WORKERS):
        arrow(axes, (column(number) + COLUMN / 2, top), (column(number) + COLUMN / 2, y), TRAVELS, both=True)


def draw_gradient(path: Path) -> Path:
    """`gradient`: all is equal, g travels at every update."""
    figure, axes = picture(316)
    for number in range(WORKERS):
        worker(axes, number, 16, 148, "its third of each batch")
        chips(axes, column(number), 76, [("W", EQUAL), ("W̄", EQUAL), ("u", EQUAL), ("moments", EQUAL)])
        chips(axes, column(number), 118, [(f"g{SUBSCRIPTS[number]}, its share's gradient", OWN)])
    bus(
        axes,
        206,
        166,
        "at every update: g ← mean of g₀, g₁, g₂",
        "N numbers, K times a batch: K copies of the model (2.30 MB)",
    )
    legend(axes, 294, MEANINGS)
    return save(figure, path)


def draw_shared(path: Path) -> Path:
    """`consensus`, `dual: shared`: each its own, agreed every H updates."""
    figure, axes = picture(350)
    for number in range(WORKERS):
        i = SUBSCRIPTS[number]
        worker(axes, number, 16, 182, "its third of each batch")
        chips(axes, column(number), 76, [(f"W{i}", OWN), (f"W̄{i}", OWN), (f"u{i}", OWN), ("moments", OWN)])
        box(axes, column(number) + 10, 122, COLUMN - 20, 64, "H updates by itself,\nnothing travels", GREY, dashed=True)
    bus(
        axes, 240, 200, "every H updates: W, W̄, u ← their means",
        "3 N numbers, K/H times a batch: 3 K/H copies (H = K: 0.99 MB)",
    )  # fmt: skip
    legend(axes, 328, ((OWN, "each has its own", 210), (TRAVELS, "travels", 470)))
    return save(figure, path)


def draw_worker(path: Path) -> Path:
    """`consensus`, `dual: worker`: a slow dual each, around one Z."""
    figure, axes = picture(424)
    for number in range(WORKERS):
        i = SUBSCRIPTS[number]
        worker(axes, number, 16, 226, "a share of its own (fixed)")
        chips(axes, column(number), 76, [(f"W{i}", OWN), (f"W̄{i}", OWN), (f"u{i}", OWN), ("moments", OWN)])
        chips(axes, column(number), 118, [(f"μ{i}, its slow dual", OWN), ("Z", EQUAL), ("μ̄", EQUAL)])
        box(
            axes, column(number) + 10, 164, COLUMN - 20, 66, f"H updates by itself,\nalso pulled to Z by μ{i}", GREY,
            dashed=True,
        )  # fmt: skip
    bus(
        axes, 284, 244, "every H updates: mean of W, and one number s² for the strength A",
        "N + 1 numbers, K/H times a batch: K/H copies (H = K: 0.33 MB)",
    )  # fmt: skip
    text(axes, 400, 370, "then μ, Z and μ̄ are renewed;  W, W̄ ← Z  and  u ← 0", size=15)
    legend(axes, 402, MEANINGS)
    return save(figure, path)


def draw_hierarchical(path: Path) -> Path:
    """`hierarchical`: gradients inside a machine, agreements between machines."""
    figure, axes = picture(474)
    tops = (16, 284)
    for machine, top in enumerate(tops):
        frame(axes, 30, top, 740, 128)
        text(axes, 46, top + 20, f"machine {machine}", bold=True, align="left")
        for place in range(2):
            x = 56 + place * 450
            box(axes, x, top + 40, 240, 74, "", GREY)
            text(axes, x + 120, top + 58, f"worker {2 * machine + place}", size=15)
            i = "ᵃᵇ"[machine]
            chips(axes, x, top + 74, [(f"W{i}", OWN), (f"W̄{i}", OWN), (f"u{i}", OWN), ("moments", OWN)], 240)
        arrow(axes, (300, top + 86), (502, top + 86), TRAVELS, both=True)
        text(axes, 401, top + 52, "every update:\nmean of g", size=15)
        text(axes, 401, top + 106, "K copies", size=15)
    for place, part in enumerate(("first half", "second half")):
        x = 176 + place * 450
        arrow(axes, (x, 144), (x, 284), TRAVELS, both=True)
        text(axes, x + (12 if place == 0 else -12), 166, part, size=14, align="left" if place == 0 else "right")
    box(axes, 190, 182, 420, 66, "", TRAVELS)
    text(axes, 400, 203, "every H updates: W, W̄, u ← their means", bold=True)
    text(axes, 400, 229, "3 K/H copies, shared out over a machine's workers", size=15)
    text(axes, 400, 436, "all of a machine is equal inside it (a, b); machines have their own", size=14, colour=GREY)
    legend(axes, 458, ((OWN, "each machine has its own", 130), (TRAVELS, "travels", 480)))
    return save(figure, path)


def draw_sharded(path: Path) -> Path:
    """`fsdp` and the stages of `deepspeed`: what is whole and what is a part, for three workers."""
    names = ("W, as the\nmodule has it", "gradient", "master W", "moments", "W̄, u")
    rows = (
        ("fsdp", (False, False, None, False, False), "gather W, deal out g:\n2 K times, K copies"),
        ("deepspeed 3", (False, False, False, False, False), "gather W twice, deal out g:\n3 K times, 1.5 K copies"),
        ("deepspeed 2", (True, False, False, False, False), "deal out g, gather new W:\n2 K times, K copies"),
        ("deepspeed 1", (True, True, False, False, False), "deal out g, gather new W:\n2 K times, K copies"),
    )
    figure, axes = picture(434)
    lefts = [140 + 88 * i for i in range(len(names))]
    for left, name in zip(lefts, names, strict=True):
        text(axes, left + 38, 30, name, size=14)
    text(axes, 686, 30, "what travels in a batch", size=14)
    for row, (strategy, whole, traffic) in enumerate(rows):
        top = 62 + row * 82
        text(axes, 14, top + 32, strategy, bold=True, align="left")
        for left, kept in zip(lefts, whole, strict=True):
            for number in range(WORKERS):
                cell(axes, left, top + number * 22, number, kept)
        text(axes, 686, top + 32, traffic, size=14, colour=TRAVELS)
    text(
        axes,
        400,
        396,
        "In each cell a bar is a worker: 0, 1 and 2 from the top. What is white it does not hold.",
        size=14,
    )
    legend(axes, 420, ((EQUAL, "whole, equal on all", 170), (PART, "a worker's own part", 430)))
    return save(figure, path)


def cell(axes: Axes, x: float, y: float, number: int, whole: bool | None) -> None:
    """One worker's bar: all of it, its third, or nothing where the strategy has no such thing."""
    width = 76
    if whole is None:
        if number == 1:
            text(axes, x + width / 2, y + 9, "none", size=14, colour=GREY)
        return
    frame(axes, x, y, width, 17)
    third = width / WORKERS
    if whole:
        box(axes, x, y, width, 17, "", EQUAL)
    else:
        box(axes, x + number * third, y, third, 17, "", PART)


PICTURES = {
    "parallel_gradient.svg": draw_gradient,
    "parallel_shared.svg": draw_shared,
    "parallel_worker.svg": draw_worker,
    "parallel_hierarchical.svg": draw_hierarchical,
    "parallel_sharded.svg": draw_sharded,
}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for file, draw in PICTURES.items():
        print(draw(folder / file))
