"""A second pull, for consensus between workers: A (W − Z) − μ, added with FPTT's own before the clip."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fptt_dist.algorithm.update import gradients


@dataclass
class Anchor:
    """What a parameter is also pulled to; parameters that are not keys feel no second pull.

    Attributes:
        center: Z by parameter, of the parameter's shape.
        dual: μ by parameter, in gradient units.
        strength: A ≥ 0 by parameter, in 1/learning-rate units.
    """

    center: Mapping[Any, Tensor]
    dual: Mapping[Any, Tensor]
    strength: Mapping[Any, float]

    def add_force(self, params: list[Tensor]) -> None:
        """Add A (W − Z) − μ to the gradients of those `params` (all with a gradient) that are anchored."""
        params = [p for p in params if p in self.center]
        if params:
            pull = torch._foreach_sub(params, [self.center[p] for p in params])
            torch._foreach_mul_(pull, [self.strength[p] for p in params])
            torch._foreach_sub_(pull, [self.dual[p] for p in params])
            torch._foreach_add_(gradients(params), pull)
