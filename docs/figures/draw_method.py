"""Draw the two figures of the method: its timeline beside BPTT's, and the effect of the regularizer.

python docs/figures/draw_method.py [FOLDER]
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from drawing import EQUAL, GREY, INK, OWN, SENT, SHARD, arrow, box, picture, save, text
from torch.nn import Parameter

from fptt_dist.algorithm import FPTT

LEFT, RIGHT = 26, 700  # where a sequence begins and ends
GAP = 62  # between windows


def draw_timeline(path: Path) -> Path:
    """Draw one update per sequence (BPTT) above one update per window (FPTT)."""
    figure, axes = picture(486)
    text(axes, LEFT, 24, "BPTT: one pass over the whole sequence, one update", bold=True, align="left")
    box(axes, LEFT, 46, RIGHT - LEFT, 40, "forward through T steps, all activations are kept", EQUAL)
    arrow(axes, (RIGHT, 106), (LEFT, 106), OWN, width=3)
    text(axes, (LEFT + RIGHT) / 2, 124, "backward through T steps", size=15, color=OWN)
    arrow(axes, (RIGHT + 2, 66), (RIGHT + 20, 66), INK)
    box(axes, RIGHT + 22, 40, 68, 52, "update\nW", SENT)

    text(axes, LEFT, 172, "FPTT: K windows, an update after each", bold=True, align="left")
    room = (RIGHT - LEFT + GAP) / 3
    length = room - GAP
    for window in range(3):
        left = LEFT + window * room
        end = left + length
        box(axes, left, 194, length, 40, ("window 1", "window 2", "… window K")[window], EQUAL)
        arrow(axes, (end, 252), (left, 252), OWN, width=3)
        text(axes, left + length / 2, 270, "backward, T/K steps", size=15, color=OWN)
        box(axes, left + length / 2 - 60, 290, 120, 38, "update W", SENT)
        arrow(axes, (left + length / 2 - 24, 330), (left + length / 2 - 24, 376), SENT)
        arrow(axes, (left + length / 2 + 24, 376), (left + length / 2 + 24, 330), SHARD)
        text(axes, left + length / 2 - 32, 352, "updates", size=14, align="right")
        text(axes, left + length / 2 + 32, 352, "regularizer", size=14, align="left")
        if window < 2:
            arrow(axes, (end + 2, 214), (end + GAP - 2, 214), INK)
            text(axes, end + GAP / 2, 232, "state,", size=14)
            text(axes, end + GAP / 2, 249, "detached", size=12)
    box(
        axes,
        LEFT,
        378,
        RIGHT - LEFT,
        40,
        "W̄ and u = λ/α, carried from update to update and from sequence to sequence",
        SHARD,
    )
    arrow(axes, (RIGHT + 2, 398), (RIGHT + GAP - 2, 398), SHARD)
    lines = (
        "The network's state is passed to the next window but detached: no gradient flows back.",
        "Only one window's activations are kept at a time: memory for T/K steps, not for T.",
    )
    for i, line in enumerate(lines):
        text(axes, LEFT, 446 + 24 * i, line, size=14, align="left")
    return save(figure, path)


def draw_regularizer(path: Path) -> Path:
    """Draw the regularizer as a spring, and impulse responses below, near and above the stability limit."""
    figure, axes = picture(400)
    text(axes, 190, 24, "The regularizer as a spring (c = κ = 1)", bold=True)
    arrow(axes, (20, 170), (372, 170), GREY, width=1.5)
    for x, name, color in ((70, "W̄", SHARD), (160, "W̄ + u", OWN), (310, "W", EQUAL)):
        axes.plot(x, 170, "o", color=color, markersize=13)
        text(axes, x, 200, name, size=17)
    arrow(axes, (70, 232), (160, 232), OWN)
    text(axes, 115, 250, "u = λ/α", size=15)
    coils = np.linspace(0, 1, 200)
    ends = np.clip((coils - 0.06) / 0.88, 0, 1)
    axes.plot(166 + 138 * coils, 170 - 16 * np.sin(2 * np.pi * 8 * ends), color=INK, linewidth=2)
    arrow(axes, (300, 120), (215, 120), INK, width=3)
    text(axes, 258, 98, "regularizer, strength α", size=15)
    text(axes, 190, 306, "The spring ends at W̄ + u, not at W̄.", size=15)
    text(axes, 190, 326, "Each update subtracts the new W − W̄", size=15)
    text(axes, 190, 346, "from u and moves W̄, so the spring", size=15)
    text(axes, 190, 366, "follows the weights.", size=15)

    text(axes, 596, 24, "Response to a single gradient", bold=True)
    text(axes, 596, 50, "stable up to αη = 1.67 (SGD, β = ½)", size=14)
    plot = figure.add_axes((0.55, 0.16, 0.42, 0.58))
    for strength, color, line in ((0.5, EQUAL, "-"), (1.5, SENT, "--"), (1.75, OWN, "-.")):
        plot.plot(impulse_response(strength), color=color, linestyle=line, linewidth=2.4, label=f"αη = {strength}")
    plot.set(xlim=(0, 15), ylim=(-3, 3))
    plot.axhline(0, color=GREY, linewidth=0.8)
    plot.set_xlabel("update", size=14)
    plot.set_ylabel("W", size=14)
    plot.tick_params(labelsize=13)
    look = {"fontsize": 13, "ncols": 3, "handlelength": 1.8, "columnspacing": 1.0, "frameon": False}
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), borderpad=0.1, **look)
    return save(figure, path)


def impulse_response(strength: float, updates: int = 15) -> list[float]:
    """Return W after one gradient of −1 followed by zero gradients; SGD with learning rate 1, α = `strength`."""
    weight = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = FPTT(torch.optim.SGD([weight], lr=1.0), alpha=strength)
    path = []
    for update_number in range(updates + 1):
        weight.grad = torch.full_like(weight, -1.0 if update_number == 0 else 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the third one exceeds the limit on purpose
            optimizer.step()
        path.append(weight.item())
    return path


FIGURES = {"method_timeline.svg": draw_timeline, "method_force.svg": draw_regularizer}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for file, draw in FIGURES.items():
        print(draw(folder / file))
