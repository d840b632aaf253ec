"""Meaning of the network's outputs: classes with their probabilities, labels, numbers in the data's own units."""

from typing import Any

import torch
from torch import Tensor

from fptt_dist.training.saved_run import SavedRun

PER_STEP = ("step_class", "step_value")


class Readout:
    """From outputs of a run's network to the columns that are written.

    Args:
        run: says which kind of targets it was trained on.

    Attributes:
        columns: their names.
        per_step: whether a series has a prediction for each of its steps, and not one after its last.
    """

    def __init__(self, run: SavedRun) -> None:
        described, outputs = run.input, run.shape.outputs
        self._target = described.get("target")
        self._classes: list[str] = described.get("classes", [])
        self.per_step = self._target in PER_STEP or (self._target is None and run.shape.output_steps == "all")
        named = getattr(run.config.task, "target_columns", None)
        match self._target:
            case "class" | "step_class":
                self.columns = ["class", *(f"p_{name}" for name in self._classes)]
            case "labels":
                self.columns = [f"p_{name}" for name in named or range(outputs)]
            case "value" | "step_value":
                self.columns = list(named) if named and len(named) == outputs else _numbered("value", outputs)
            case "forecast":
                channels = list(named or described["features"])
                self.columns = [f"{name}+{ahead + 1}" for ahead in range(outputs // len(channels)) for name in channels]
            case _:
                self.columns = _numbered("output", outputs)
        self._scaling = None
        if "target_mean" in described:
            constants = (described["target_mean"], described["target_std"])
            self._scaling = [torch.tensor(each, dtype=torch.float64) for each in constants]

    def rows(self, outputs: Tensor) -> list[list[Any]]:
        """Return the predictions (M, columns) of outputs (M, O), computed in float64."""
        outputs = outputs.double().cpu()
        match self._target:
            case "class" | "step_class":
                likely = outputs.argmax(-1).tolist()
                shares = outputs.softmax(-1).tolist()
                return [[self._classes[each], *share] for each, share in zip(likely, shares, strict=True)]
            case "labels":
                return outputs.sigmoid().tolist()
            case _:
                if self._scaling is None:
                    return outputs.tolist()
                mean, std = self._scaling
                return (outputs * std + mean).tolist()


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{number}" for number in range(count)]
