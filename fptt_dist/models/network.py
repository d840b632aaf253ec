"""A recurrent layer and its read-out."""

from typing import Any, Literal

from torch import Tensor, nn


class Network(nn.Module):
    """A recurrent layer with a linear read-out: `(x, state) → (y, state)`, time-major.

    Args:
        recurrent: `(x (S, B, I), state) → (h (S, B, H), state)`.
        hidden: H.
        outputs: O.
        reads: "every" gives an output for each step, "last" for the window's last step alone.
    """

    def __init__(
        self, recurrent: nn.Module, hidden: int, outputs: int, *, reads: Literal["last", "every"] = "every"
    ) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.readout = nn.Linear(hidden, outputs)
        self.reads = reads

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs (S or 1, B, O) of one window and the state after it."""
        hidden, state = self.recurrent(x, state)
        return self.readout(hidden if self.reads == "every" else hidden[-1:]), state

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: of the recurrent layer alone ("recurrent", the paper's way of counting) and "total"."""
        return {
            "recurrent": sum(p.numel() for p in self.recurrent.parameters()),
            "total": sum(p.numel() for p in self.parameters()),
        }
