"""Tiny runs on a text, for the tests of language models."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fptt_dist.config import Config, apply_overrides
from fptt_dist.config import Train as TrainSection

AWD: dict[str, Any] = {
    "model.layer": "awd_lstm",
    "model.embedding": 5,
    "model.hidden": 6,
    "model.layers": 2,
}


def write_text(folder: Path, words: int = 600) -> Path:
    """A folder with train.txt, valid.txt and test.txt of 8 words in random order."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(5)
    for name, size in (("train", words), ("valid", 90), ("test", 80)):
        lines = [" ".join(draw.choice("abcdefgh") for _ in range(9)) for _ in range(size // 10)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_text(folder: Path, overrides: Mapping[str, Any] | None = None, *, batches: int = 10) -> Config:
    """A run of a second in `folder`, on a text beside it: four streams, 12 steps a sequence, 12 batches an epoch."""
    text = write_text(folder.parent / "text")
    base = Config(train=TrainSection(max_batches=batches))
    settings = {
        "task.name": "language",
        "task.text_dir": str(text),
        "task.length": 12,
        "model.hidden": 4,
        "fptt.windows": 3,
        "optimizer.lr": 1e-2,
        "train.batch_size": 4,
        "logging.every_batches": 1,
        "logging.tensorboard": False,
        "device": "cpu",
        "run.dir": str(folder),
    }
    return apply_overrides(base, {**settings, **(overrides or {})})
