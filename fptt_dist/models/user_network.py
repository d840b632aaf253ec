"""A whole network of the user's."""

from typing import Literal

from torch import Tensor, nn

from fptt_dist.types import State


class UserNetwork(nn.Module):
    """A network of the user's, with the outputs of the steps that a task needs.

    Args:
        module: `(x, state) → (y (S, B, O), state)`, with an output for each step.
        output_steps: "all" gives an output for each step, "last" for the window's last step alone.
    """

    def __init__(self, module: nn.Module, output_steps: Literal["last", "all"] = "all") -> None:
        super().__init__()
        self.module = module
        self.output_steps = output_steps

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Outputs (S or 1, B, O) of one window and the state after it."""
        y, state = self.module(x, state)
        return (y if self.output_steps == "all" else y[-1:]), state

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: all are "recurrent", as nobody says which are not, and "total"."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return {"recurrent": total, "total": total}
