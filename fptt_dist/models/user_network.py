"""A whole network of the user's, as the training loop calls it."""

from typing import Literal

from torch import Tensor, nn

from fptt_dist.types import State


class UserNetwork(nn.Module):
    """A network of the user's: `(x, state) → (y, state)`, time-major.

    Args:
        module: `(x (S, B, I), or ids (S, B), state) → (y (S, B, O), state)`, with an output for each step.
        output_steps: "all" gives each step's output, "last" that of the window's last step alone.

    Attributes:
        module: the user's.
    """

    def __init__(self, module: nn.Module, *, output_steps: Literal["last", "all"] = "all") -> None:
        super().__init__()
        self.module = module
        self.output_steps = output_steps

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Outputs (S or 1, B, O) of one window and the state after it."""
        y, state = self.module(x, state)
        return (y if self.output_steps == "all" else y[-1:]), state

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters, as "recurrent" too: which of them recur cannot be told."""
        total = sum(p.numel() for p in self.parameters())
        return {"recurrent": total, "total": total}
