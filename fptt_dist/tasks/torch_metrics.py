"""Metrics in torchmetrics' interface, with the values that scikit-learn gives; imported where a task is measured."""

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelExactMatch,
    MultilabelF1Score,
)


def class_metric(name: str, size: int, *, labels: bool) -> Metric:
    """Return the metric of that name, of `size` classes, or where `labels` is true of `size` labels."""
    match name, labels:
        case "accuracy", False:
            return MulticlassAccuracy(size, average="micro", validate_args=False)
        case "balanced_accuracy", False:
            return BalancedAccuracy(size, validate_args=False)
        case "macro_f1", False:
            return MulticlassF1Score(size, average="macro", validate_args=False)
        case "accuracy", True:
            return MultilabelExactMatch(size, validate_args=False)
        case "macro_f1", True:
            return MultilabelF1Score(size, average="macro", validate_args=False)
        case "auroc", _:
            return MacroAUROC(size, labels=labels)
        case _:
            raise ValueError(f"there is no metric {name} of {'labels' if labels else 'classes'}")


def error_metric(*, squared: bool) -> Metric:
    """Return the root mean squared error, or the mean absolute error, summed in float64."""
    metric = MeanSquaredError(squared=False) if squared else MeanAbsoluteError()
    return metric.set_dtype(torch.float64)


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean recall of the classes that occur among the targets; torchmetrics' own counts 0 for others."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the value (0-dim); NaN without targets."""
        counts = self.confmat.double()  # by target and prediction
        found = counts.sum(1) > 0
        return (counts.diagonal()[found] / counts.sum(1)[found]).mean()


class MacroAUROC(Metric):
    """Mean over classes or labels of the area under the ROC curve, one against the rest.

    One that has no positive or no negative example has no curve, and is left out; of two classes the second one counts,
    the other is its mirror image.

    Args:
        size: classes or labels.
        labels: whether targets are (N, L), 0 or 1, instead of classes (N,).
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    found: list[Tensor] | Tensor
    expected: list[Tensor] | Tensor

    def __init__(self, size: int, *, labels: bool) -> None:
        super().__init__()
        self.size = size
        self.labels = labels
        self.add_state("found", [], dist_reduce_fx="cat")
        self.add_state("expected", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take in probabilities (N, C) and their targets."""
        assert isinstance(self.found, list)
        assert isinstance(self.expected, list)
        self.found.append(predictions)
        self.expected.append(targets)

    def compute(self) -> Tensor:
        """Return the value (0-dim, float64); NaN where no class has a curve, or a prediction is not finite."""
        found = self.found if isinstance(self.found, Tensor) else torch.cat(self.found)
        expected = self.expected if isinstance(self.expected, Tensor) else torch.cat(self.expected)
        positive = expected.bool() if self.labels else functional.one_hot(expected, self.size).bool()
        columns = [1] if self.size == 2 and not self.labels else range(self.size)
        areas = torch.stack([_area(found[:, column], positive[:, column]) for column in columns])
        return areas.nanmean() if bool(found.isfinite().all()) else areas.new_tensor(float("nan"))


def _area(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the share of pairs of a positive and a negative that `scores` (N,) order rightly, a tie half; or NaN."""
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts - 1).double() / 2  # the mean one of those that are equal
    number = positive.sum().double()
    above = ranks[place][positive].sum() - number * (number + 1) / 2
    return above / (number * (len(scores) - number))  # 0 / 0 where there are no pairs


class MeanAbsoluteScaledError(Metric):
    """Mean absolute error divided by each channel's scale (Hyndman & Koehler 2006); 1 is as good as the naive forecast.

    Args:
        scale: (D,), the error of the naive forecast in the training split.
    """

    higher_is_better = False
    is_differentiable = True
    full_state_update = False
    total: Tensor
    count: Tensor
    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.double(), persistent=False)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take in forecasts (N, D) and what came (N, D)."""
        self.total += ((predictions - targets).abs() / self.scale).sum()
        self.count += targets.numel()

    def compute(self) -> Tensor:
        """Return the value (0-dim, float64)."""
        return self.total / self.count
