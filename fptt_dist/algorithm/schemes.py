"""FPTT and its baselines as settings of one loop.

| name              | windows           | loss                                          | updates | regularizer |
|-------------------|-------------------|-----------------------------------------------|---------|-------------|
| bptt              | 1                 | final (terminal), mean over steps (sequence)  | 1       | no          |
| bptt_aux          | K in one graph    | mean over the K windows of ℓ_k                | 1       | no          |
| tbptt_accumulated | K, state detached | Σ (ω_k/T) ℓ_k; terminal: the last window only | 1       | no          |
| tbptt             | K, state detached | ℓ_k                                           | K       | no          |
| fptt              | K, state detached | ℓ_k                                           | K       | yes         |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fptt_dist.algorithm.windows import Window, each_window

SchemeName = Literal["fptt", "tbptt", "tbptt_accumulated", "bptt_aux", "bptt"]


@dataclass(frozen=True)
class TrainingScheme:
    """Training scheme of one sequence.

    Attributes:
        name: as in the table above.
        one_graph: gradients flow through the whole sequence.
        update_each_window: an update per window, or one at the sequence's end.
        has_regularizer: FPTT's dynamic regularizer is on.
    """

    name: SchemeName
    one_graph: bool = False
    update_each_window: bool = False
    has_regularizer: bool = False

    def passes(self, length: int, windows: int, size: int | None = None) -> Iterator[list[Window]]:
        """The windows of each forward-and-backward pass, in order; the state is detached between passes."""
        parts = each_window(length, 1) if self.name == "bptt" else each_window(length, windows, size)
        if self.one_graph:
            yield list(parts)
        else:
            yield from ([window] for window in parts)

    def weight(self, window: Window, *, terminal: bool) -> float:
        """The factor of ℓ_k in the loss that is differentiated; 0 means that the pass needs no gradient."""
        if self.name == "bptt_aux":
            return 1.0 / window.count
        if self.name == "tbptt_accumulated":
            return float(window.is_last) if terminal else window.steps / window.length
        return 1.0


SCHEMES: dict[str, TrainingScheme] = {
    scheme.name: scheme
    for scheme in (
        TrainingScheme("fptt", update_each_window=True, has_regularizer=True),
        TrainingScheme("tbptt", update_each_window=True),
        TrainingScheme("tbptt_accumulated"),
        TrainingScheme("bptt_aux", one_graph=True),
        TrainingScheme("bptt", one_graph=True),
    )
}
