"""The mean of the weights over all updates from a given one on (Polyak & Juditsky 1992)."""

import torch
from torch import Tensor
from torch.optim import Optimizer

AVERAGE = "average"
AVERAGED = "averaged"  # of a group: updates in the mean so far, None before it begins


class WeightAverage:
    """Keeps, beside an optimizer's own state, the mean of each parameter after the updates since `begin`:

        ā_n = ā_{n-1} + (W_n − ā_{n-1}) / n

    Args:
        optimizer: after each of its steps the weights enter the mean, which is in its state and so in its checkpoints.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault(AVERAGED, None)
        optimizer.register_step_post_hook(lambda *_: self._take_in())

    @property
    def started(self) -> bool:
        """True once there is a mean, that is, after the first update since `begin`."""
        return all(group[AVERAGED] for group in self._optimizer.param_groups)

    def begin(self) -> None:
        """Start with the next update; without effect once begun."""
        for group in self._optimizer.param_groups:
            if group[AVERAGED] is None:
                group[AVERAGED] = 0

    def values(self) -> list[Tensor]:
        """The means, in the order of the groups; a parameter that never had a gradient is its own."""
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        return [self._optimizer.state[p].get(AVERAGE, p.detach()) for p in params]

    @torch.no_grad()
    def _take_in(self) -> None:
        for group in self._optimizer.param_groups:
            if group[AVERAGED] is None:
                continue
            group[AVERAGED] += 1
            for p in group["params"]:
                state = self._optimizer.state[p]
                if AVERAGE in state:
                    state[AVERAGE].lerp_(p, 1.0 / group[AVERAGED])
                elif p.grad is not None:
                    state[AVERAGE] = p.detach().clone()


class NonMonotonicTrigger:
    """Trigger of averaging: a validation value is worse than the best before the last `patience` (Merity et al. 2018).

    Args:
        patience: n ≥ 1.
        higher_is_better: the metric's direction.

    Attributes:
        values: of all validations so far.
    """

    def __init__(self, patience: int, *, higher_is_better: bool) -> None:
        self._patience = patience
        self._sign = -1.0 if higher_is_better else 1.0
        self.values: list[float] = []

    def __call__(self, value: float) -> bool:
        """Record a validation's value; return whether to begin averaging."""
        earlier = self.values[: len(self.values) - self._patience] if len(self.values) > self._patience else []
        self.values.append(value)
        return bool(earlier) and self._sign * value > min(self._sign * each for each in earlier)
