"""A metric of the user's own for benchmarks/real_series.py: the mean cross-entropy of the predicted classes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class LogLoss(Metric):
    """Mean of −log p of the right class: unlike accuracy, it differs between all checkpoints of a small set."""

    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add N predictions.

        Args:
            probabilities: (N, C).
            targets: (N,) classes.
        """
        right = probabilities.gather(1, targets[:, None]).clamp_min(1e-12)
        self.total -= right.log().sum()
        self.count += len(targets)

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.count
