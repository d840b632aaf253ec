"""The optimizer as the engine sees it: what `FPTT` has and `parallel` needs, which imports no algorithm."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from torch import Tensor

Weights = Literal["center", "weights"]
Measurement = Callable[[], dict[str, Tensor]]
"""Returns the optimizer's norms by name, 0-dim, of the gradients of the update."""


class OptimizerView(Protocol):
    """The optimizer as the engine sees it.

    Attributes:
        param_groups: torch's, with FPTT's `beta`.
        constants: FPTT's `update_rule`, "second_gradient" where u is not updated by u ← u − (W' − W̄).
        consensus_term: receives the second regularizer (`center`, `dual`, `strength` by parameter).
        norm_reduce: receives the function that maps a shard's sum of squares to the full sum.
    """

    param_groups: list[dict[str, Any]]
    constants: Any
    consensus_term: Any
    norm_reduce: Callable[[Tensor], Tensor] | None

    @property
    def step(self) -> Callable[..., Any]:
        """One update."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        ...

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> Any:
        """Call `hook` before each update."""
        ...

    def at_center(self) -> AbstractContextManager[None]:
        """Let the model compute with W̄ within the context."""
        ...

    def swapped_weights(self, params: list[Tensor], values: list[Tensor]) -> AbstractContextManager[None]:
        """Give `params` the `values` within the context, in which an update is refused."""
        ...

    def slow_state(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return parameters, W̄ and u, the optimizer's own tensors."""
        ...
