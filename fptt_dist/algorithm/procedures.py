"""FPTT and its baselines as settings of one loop.

| name     | windows           | loss                                           | updates | force |
|----------|-------------------|------------------------------------------------|---------|-------|
| bptt     | 1                 | final (terminal), mean over steps (sequence)   | 1       | none  |
| bptt_aux | K in one graph    | mean over the K windows of ℓ_k                 | 1       | none  |
| tbptt    | K, state detached | Σ (ω_k/T) ℓ_k; terminal: the last window only  | 1       | none  |
| online   | K, state detached | ℓ_k                                            | K       | none  |
| fptt     | K, state detached | ℓ_k                                            | K       | yes   |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fptt_dist.algorithm.windows import Remainder, Window, each_window

ProcedureName = Literal["fptt", "online", "tbptt", "bptt_aux", "bptt"]


@dataclass(frozen=True)
class Procedure:
    """How one sequence is trained.

    Attributes:
        name: as in the table above.
        one_graph: gradients flow through the whole sequence.
        update_each_window: an update per window, or one at the sequence's end.
        has_force: FPTT's pull is on.
    """

    name: ProcedureName
    one_graph: bool = False
    update_each_window: bool = False
    has_force: bool = False

    def passes(self, length: int, windows: int, remainder: Remainder = "spread") -> Iterator[list[Window]]:
        """The windows of each forward-and-backward pass, in order; the state is detached between passes."""
        parts = each_window(length, 1 if self.name == "bptt" else windows, remainder)
        if self.one_graph:
            yield list(parts)
        else:
            yield from ([window] for window in parts)

    def weight(self, window: Window, *, terminal: bool) -> float:
        """The factor of ℓ_k in the loss that is differentiated; 0 means that the pass needs no gradient."""
        if self.name == "bptt_aux":
            return 1.0 / window.count
        if self.name == "tbptt":
            return float(window.is_last) if terminal else window.steps / window.length
        return 1.0


PROCEDURES: dict[str, Procedure] = {
    procedure.name: procedure
    for procedure in (
        Procedure("fptt", update_each_window=True, has_force=True),
        Procedure("online", update_each_window=True),
        Procedure("tbptt"),
        Procedure("bptt_aux", one_graph=True),
        Procedure("bptt", one_graph=True),
    )
}
