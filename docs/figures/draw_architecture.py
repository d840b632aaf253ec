"""Draw how a batch flows through the program:

python docs/figures/draw_architecture.py [FOLDER]
"""

import sys
from pathlib import Path

from drawing import EQUAL, GREY, OWN, SENT, SHARD, arrow, box, frame, picture, save, text

PITCH = 148  # from one step of a window to the next


def draw_batch(path: Path) -> Path:
    """Draw a batch: the task's slice, K windows with an update each, then what follows the batch."""
    figure, axes = picture(392)
    box(axes, 20, 20, 236, 56, "Task.train_batch\nthis worker's slice", SHARD, size=14)
    text(axes, 272, 40, "a pure function of (seed, epoch, cursor)", size=13, color=GREY, align="left")
    arrow(axes, (138, 76), (138, 126))
    frame(axes, 10, 104, 780, 180)
    text(axes, 776, 122, "WindowLoop.run: K windows, one update each", size=13, color=GREY, align="right")
    steps = (
        ("Network\ny, state", "models", EQUAL),
        ("Task.loss\nℓ of the window", "tasks", SHARD),
        ("Engine\n.backward", "gradients,\naveraged by a GradientSync", OWN),
        ("Engine.step\n→ FPTT.step", "regularizer, clip,\nbase step, u, W̄", OWN),
        ("Engine\n.after_update", "W̄, u, W averaged every\nH updates by Consensus", SENT),
    )
    for number, (words, below, color) in enumerate(steps):
        x = 26 + number * (PITCH + 4)
        box(axes, x, 138, 130, 56, words, color, size=14)
        text(axes, x + 65, 218, below, size=10.5, color=GREY)
        if number:
            arrow(axes, (x - 22, 166), (x, 166))
    arrow(axes, (702, 236), (702, 262), width=1.6)
    axes.plot([702, 91], [262, 262], color="#202020", linewidth=1.6)
    arrow(axes, (91, 262), (91, 230), width=1.6)
    text(axes, 400, 273, "next window: the state is detached, so activations of one window only", size=13)
    arrow(axes, (400, 284), (400, 316))
    box(
        axes,
        130,
        318,
        540,
        56,
        "Engine.after_batch: flags that all workers know\nTrainer: metrics, validation, checkpoint",
        SENT,
        size=14,
    )
    return save(figure, path)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    print(draw_batch(folder / "architecture_batch.svg"))
