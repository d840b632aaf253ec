"""The consensus term, a second regularizer that ties workers together: its gradient A (W − Z) − μ is added along with
that of FPTT's own regularizer, before clipping.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fptt_dist.algorithm.update import gradients


@dataclass
class ConsensusTerm:
    """A second quadratic regularizer with its own center and dual; it leaves parameters that are not keys alone.

    Attributes:
        center: Z by parameter, of the parameter's shape.
        dual: μ by parameter, in gradient units.
        strength: A ≥ 0 by parameter, in 1/learning-rate units.
    """

    center: Mapping[Any, Tensor]
    dual: Mapping[Any, Tensor]
    strength: Mapping[Any, float]

    def add_gradient(self, params: list[Tensor]) -> None:
        """Add A (W − Z) − μ to the gradients of those `params` (all with a gradient) that have a center Z."""
        params = [p for p in params if p in self.center]
        if params:
            term = torch._foreach_sub(params, [self.center[p] for p in params])
            torch._foreach_mul_(term, [self.strength[p] for p in params])
            torch._foreach_sub_(term, [self.dual[p] for p in params])
            torch._foreach_add_(gradients(params), term)
