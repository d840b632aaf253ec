"""Draw the two pictures of the method: its timeline beside BPTT's, and what the pull does.

python docs/figures/draw_method.py [FOLDER]
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from drawing import EQUAL, GREY, INK, OWN, PART, TRAVELS, arrow, box, picture, save, text
from torch.nn import Parameter

from fptt_dist.algorithm import FPTT

LEFT, RIGHT = 26, 700  # where a sequence begins and ends
GAP = 62  # between windows


def draw_timeline(path: Path) -> Path:
    """One update a sequence, or one a window."""
    figure, axes = picture(486)
    text(axes, LEFT, 24, "BPTT: one pass over the whole sequence, one update", bold=True, align="left")
    box(axes, LEFT, 46, RIGHT - LEFT, 40, "forward through T steps, all activations are kept", EQUAL)
    arrow(axes, (RIGHT, 106), (LEFT, 106), OWN, width=3)
    text(axes, (LEFT + RIGHT) / 2, 124, "backward through T steps", size=15, colour=OWN)
    arrow(axes, (RIGHT + 2, 66), (RIGHT + 20, 66), INK)
    box(axes, RIGHT + 22, 40, 68, 52, "update\nW", TRAVELS)

    text(axes, LEFT, 172, "FPTT: K windows, an update after each", bold=True, align="left")
    room = (RIGHT - LEFT + GAP) / 3
    length = room - GAP
    for window in range(3):
        left = LEFT + window * room
        end = left + length
        box(axes, left, 194, length, 40, ("window 1", "window 2", "… window K")[window], EQUAL)
        arrow(axes, (end, 252), (left, 252), OWN, width=3)
        text(axes, left + length / 2, 270, "backward, T/K steps", size=15, colour=OWN)
        box(axes, left + length / 2 - 60, 290, 120, 38, "update W", TRAVELS)
        arrow(axes, (left + length / 2 - 24, 330), (left + length / 2 - 24, 376), TRAVELS)
        arrow(axes, (left + length / 2 + 24, 376), (left + length / 2 + 24, 330), PART)
        text(axes, left + length / 2 - 32, 352, "renews", size=14, align="right")
        text(axes, left + length / 2 + 32, 352, "pull", size=14, align="left")
        if window < 2:
            arrow(axes, (end + 2, 214), (end + GAP - 2, 214), INK)
            text(axes, end + GAP / 2, 232, "state,", size=14)
            text(axes, end + GAP / 2, 249, "cut", size=14)
    box(
        axes,
        LEFT,
        378,
        RIGHT - LEFT,
        40,
        "W̄ and u = λ/α, carried from update to update and from sequence to sequence",
        PART,
    )
    arrow(axes, (RIGHT + 2, 398), (RIGHT + GAP - 2, 398), PART)
    lines = (
        "The network's state goes on to the next window; its graph is cut, so no gradient goes back.",
        "Activations of one window are kept at a time: memory is that of T/K steps, not of T.",
    )
    for i, line in enumerate(lines):
        text(axes, LEFT, 446 + 24 * i, line, size=14, align="left")
    return save(figure, path)


def draw_force(path: Path) -> Path:
    """The pull as a spring, and what becomes of a push below, near and above the stability limit."""
    figure, axes = picture(400)
    text(axes, 190, 24, "Where the pull goes (c = κ = 1)", bold=True)
    arrow(axes, (20, 170), (372, 170), GREY, width=1.5)
    for x, name, colour in ((70, "W̄", PART), (160, "W̄ + u", OWN), (310, "W", EQUAL)):
        axes.plot(x, 170, "o", color=colour, markersize=13)
        text(axes, x, 200, name, size=17)
    arrow(axes, (70, 232), (160, 232), OWN)
    text(axes, 115, 250, "u = λ/α", size=15)
    coils = np.linspace(0, 1, 200)
    ends = np.clip((coils - 0.06) / 0.88, 0, 1)
    axes.plot(166 + 138 * coils, 170 - 16 * np.sin(2 * np.pi * 8 * ends), color=INK, linewidth=2)
    arrow(axes, (300, 120), (215, 120), INK, width=3)
    text(axes, 258, 98, "pull, strength α", size=15)
    text(axes, 190, 306, "The spring ends at W̄ + u, not at W̄.", size=15)
    text(axes, 190, 326, "After a step u loses new W − W̄, and W̄", size=15)
    text(axes, 190, 346, "moves: the spring follows the weights.", size=15)

    text(axes, 596, 24, "One push, then no gradient", bold=True)
    text(axes, 596, 50, "stable up to αη = 1.67 (SGD, β = ½)", size=14)
    plot = figure.add_axes((0.55, 0.16, 0.42, 0.58))
    for strength, colour, line in ((0.5, EQUAL, "-"), (1.5, TRAVELS, "--"), (1.75, OWN, "-.")):
        plot.plot(after_a_push(strength), color=colour, linestyle=line, linewidth=2.4, label=f"αη = {strength}")
    plot.set(xlim=(0, 15), ylim=(-3, 3))
    plot.axhline(0, color=GREY, linewidth=0.8)
    plot.set_xlabel("update", size=14)
    plot.set_ylabel("W", size=14)
    plot.tick_params(labelsize=13)
    look = {"fontsize": 13, "ncols": 3, "handlelength": 1.8, "columnspacing": 1.0, "frameon": False}
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), borderpad=0.1, **look)
    return save(figure, path)


def after_a_push(strength: float, updates: int = 15) -> list[float]:
    """W after one gradient of −1 and none later; SGD at rate 1, α = `strength`."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = FPTT(torch.optim.SGD([weight], lr=1.0), alpha=strength)
    path = []
    for update_number in range(updates + 1):
        weight.grad = torch.full_like(weight, -1.0 if update_number == 0 else 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the third one is past the limit on purpose
            optimizer.step()
        path.append(weight.item())
    return path


PICTURES = {"method_timeline.svg": draw_timeline, "method_force.svg": draw_force}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for file, draw in PICTURES.items():
        print(draw(folder / file))
