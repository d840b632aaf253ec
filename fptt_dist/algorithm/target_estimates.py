"""Q, the distribution that a terminal loss trusts before the label counts in full (Kag & Saligrama 2021, section 3.3).

The paper: "our estimate in the last epoch". Three readings of it, each indexed by label or example and by window:
`UniformEstimate` (what the authors' code uses), `ClassMeanEstimate` and `ExampleEstimate`. An estimate is fixed over an
epoch, gathers what the network says meanwhile (`observe`), and takes it over at the epoch's end (`end_epoch`).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class LabelEstimate(Protocol):
    """Interface of Q to a terminal loss. B: batch, C: classes.

    Attributes:
        learns: whether Q comes from what is observed.
        windows: K of its tables.
    """

    learns: bool
    windows: int

    def __call__(self, window: int | Tensor, labels: Tensor, examples: Tensor | None) -> Tensor:
        """Q (B, C) for `window` (from 1; of all, or (B,) of each), labels (B,) and global example ids (B,)."""
        ...

    def observe(self, window: int | Tensor, labels: Tensor, examples: Tensor | None, probabilities: Tensor) -> None:
        """Take note of P̂ (B, C) of this training pass."""
        ...

    def end_epoch(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Take over what was observed; `reduce` sums a tensor over the workers."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the tables to where labels and probabilities live."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring back what `state_dict` gave."""
        ...

    def repartitioned(self, states: list[dict[str, Tensor]], *, first: bool) -> dict[str, Tensor]:
        """See `WindowLoss.repartitioned`."""
        ...


class UniformEstimate:
    """Q = 1/C, for ever."""

    learns = False
    windows = 1

    def __init__(self, classes: int) -> None:
        self.table = torch.full((classes,), 1.0 / classes)

    def __call__(self, window: int | Tensor, labels: Tensor, examples: Tensor | None) -> Tensor:
        """Q (B, C), every entry 1/C."""
        return self.table.expand(len(labels), -1)

    def observe(self, window: int | Tensor, labels: Tensor, examples: Tensor | None, probabilities: Tensor) -> None:
        """Nothing to learn."""

    def end_epoch(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Nothing to take over."""

    def to(self, device: torch.device) -> None:
        """Move the one row there is."""
        self.table = self.table.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to bring back."""

    def repartitioned(self, states: list[dict[str, Tensor]], *, first: bool) -> dict[str, Tensor]:
        """Nothing to redistribute."""
        return {}


class ClassMeanEstimate:
    """Q: the mean of P̂ over the training examples of a label at a window, over the last epoch.

    Uniform in the first epoch and for labels that the last epoch did not show.

    Args:
        classes: C.
        windows: K.
    """

    learns = True

    def __init__(self, classes: int, windows: int) -> None:
        self.windows = windows
        self.table = torch.full((windows, classes, classes), 1.0 / classes)  # (K, label, C)
        self.sums = torch.zeros(windows, classes, classes, dtype=torch.float64)
        self.counts = torch.zeros(windows, classes, dtype=torch.float64)

    def __call__(self, window: int | Tensor, labels: Tensor, examples: Tensor | None) -> Tensor:
        """Q (B, C) of each example's label."""
        return self.table[window - 1, labels]

    def observe(self, window: int | Tensor, labels: Tensor, examples: Tensor | None, probabilities: Tensor) -> None:
        """Add P̂ (B, C) to the sums of its labels."""
        rows = (window - 1) * self.counts.shape[1] + labels
        self.sums.flatten(0, 1).index_add_(0, rows, probabilities.double())
        self.counts.view(-1).index_add_(0, rows, torch.ones_like(labels, dtype=torch.float64))

    def end_epoch(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Make the means of this epoch, over all workers, the table of the next."""
        sums, counts = reduce(self.sums), reduce(self.counts).unsqueeze(-1)
        mean = (sums / counts.clamp(min=1.0)).float()
        self.table = torch.where(counts > 0, mean, torch.full_like(mean, 1.0 / mean.shape[-1]))
        self.sums.zero_()
        self.counts.zero_()

    def to(self, device: torch.device) -> None:
        """Move table and sums to `device`."""
        self.table, self.sums, self.counts = (t.to(device) for t in (self.table, self.sums, self.counts))

    def state_dict(self) -> dict[str, Tensor]:
        """The table in use and the sums so far."""
        return {"table": self.table, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring back table and sums."""
        for name in ("table", "sums", "counts"):
            getattr(self, name).copy_(state[name])

    def repartitioned(self, states: list[dict[str, Tensor]], *, first: bool) -> dict[str, Tensor]:
        """The table is every worker's; the first one takes the sums, of which only the total counts."""
        sums = {name: torch.stack([state[name] for state in states]).sum(0) for name in ("sums", "counts")}
        return {"table": states[0]["table"], **{name: t if first else torch.zeros_like(t) for name, t in sums.items()}}


class ExampleEstimate:
    """Q: P̂ of this very example at a window, in the last epoch; uniform before. Memory N·K·C floats, twice.

    Args:
        examples: N, the size of the training set; ids run from 0 to N-1.
        classes: C.
        windows: K.
    """

    learns = True

    def __init__(self, examples: int, classes: int, windows: int) -> None:
        self.windows = windows
        self.table = torch.full((examples, windows, classes), 1.0 / classes)  # (N, K, C)
        self.next = self.table.clone()

    def __call__(self, window: int | Tensor, labels: Tensor, examples: Tensor | None) -> Tensor:
        """Q (B, C) of each example."""
        return self.table[_known(examples), window - 1]

    def observe(self, window: int | Tensor, labels: Tensor, examples: Tensor | None, probabilities: Tensor) -> None:
        """Record P̂ (B, C) for the next epoch."""
        self.next[_known(examples), window - 1] = probabilities.to(self.next.dtype)

    def end_epoch(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Make the recorded P̂ the table; each worker keeps its own examples, so nothing is reduced."""
        self.table, self.next = self.next, self.table
        self.next.fill_(1.0 / self.next.shape[-1])

    def to(self, device: torch.device) -> None:
        """Move both tables to `device`."""
        self.table, self.next = self.table.to(device), self.next.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Both tables."""
        return {"table": self.table, "next": self.next}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Bring both tables back."""
        self.table.copy_(state["table"])
        self.next.copy_(state["next"])

    def repartitioned(self, states: list[dict[str, Tensor]], *, first: bool) -> dict[str, Tensor]:
        """Refused: each worker knows its own examples only.

        Raises:
            ValueError: always.
        """
        raise ValueError("an estimate by example knows its own worker's examples only")


def _known(examples: Tensor | None) -> Tensor:
    if examples is None:
        raise ValueError("an estimate by example needs the examples' ids, and this task gives none")
    return examples
