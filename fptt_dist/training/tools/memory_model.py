"""Prediction of a worker's memory where nothing is sharded: what it holds, and what a window adds.

    peak = what is held all the time + the largest phase                without activations: see the dry run

A phase is an upper bound: it adds up what may be alive together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

FULL, HALF = 4, 2  # bytes of an element

WEIGHTS, MASTER, MOMENTS, SLOW = "weights", "master weights", "state of the base optimizer", "W̄ and u"
BUFFERS, SWAPPED, GRADIENTS = "buffers of the collectives", "weights kept during an evaluation", "gradients"
COPIES, TEMPORARY, PACKED = "copies made by the collectives", "temporaries of the update", "packed weights of a layer"
BACKWARD, UPDATE, SYNC, EVALUATION = "backward", "update", "sync", "evaluation"
STRATEGIES = ("single", "data_parallel", "consensus")
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class MemoryInputs:
    """Inputs of the prediction other than the strategy.

    Attributes:
        shapes: of all parameters.
        moments: state tensors of the base optimizer per parameter (Adam: 2).
        steps: whether it also counts its steps, one number per tensor.
        temporaries: copies of what a worker keeps that one update makes in passing.
        copies: of the model, that a sync of consensus sends.
        payload: bytes of an element that is sent.
        kept: further copies that the sync keeps (local duals: Z, μ, μ̄; bf16: the last synced values).
        on_cpu: whether it computes on a CPU, where oneDNN packs weights.
    """

    shapes: Shapes
    moments: int = 2
    steps: bool = True
    temporaries: int = 4
    copies: int = 3
    payload: int = FULL
    kept: int = 0
    on_cpu: bool = True

    @property
    def parameters(self) -> int:
        """N."""
        return sum(map(math.prod, self.shapes))

    @property
    def packed(self) -> int:
        """The elements that oneDNN packs for one layer's backward pass on a CPU: two matrices, assumed the largest.

        It packs them twice where their rows are not a multiple of 16 elements (seen of a lone LSTM). On a GPU what
        cuDNN packs is kept by the graph, so the dry run counts it as activations.
        """
        largest = sorted(self.shapes, key=math.prod)[-2:]
        twice = any(shape[-1] % 16 for shape in largest)
        return sum(map(math.prod, largest)) * (1 + twice) if self.on_cpu else 0


@dataclass
class Prediction:
    """Bytes of one worker by what holds them.

    Attributes:
        held: all the time.
        phases: in addition, for each phase by what holds it; only one phase is active at a time.
    """

    held: dict[str, int] = field(default_factory=dict)
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def resident(self) -> int:
        """Bytes that are held all the time."""
        return sum(self.held.values())

    def peak(self, activations: int = 0) -> int:
        """Return the peak; `activations` are the bytes that the graph of one window keeps."""
        extra = {name: sum(rows.values()) for name, rows in self.phases.items()}
        return self.resident + max({**extra, BACKWARD: extra[BACKWARD] + activations}.values())

    @property
    def rows(self) -> dict[str, int]:
        """Bytes that are held, and the largest over the phases of each entry that is not."""
        found = dict(self.held)
        for rows in self.phases.values():
            for name, size in rows.items():
                if name not in self.held:
                    found[name] = max(found.get(name, 0), size)
        return found


def predict(inputs: MemoryInputs, strategy: str, *, inside: int = 1) -> Prediction:
    """Predict the memory of a worker.

    Args:
        inputs: the model and its optimizer.
        strategy: one of `STRATEGIES`, "ddp", or "hierarchical", which averages gradients inside a node.
        inside: workers per node, for "hierarchical".
    """
    match strategy:
        case "single":
            return _replica(inputs)
        case "data_parallel":
            return _gradient(inputs)
        case "ddp":
            return _replica(inputs, buffers=FULL * inputs.parameters)
        case "consensus":
            return _with_sync(_replica(inputs), inputs)
        case "hierarchical":
            return _with_sync(_gradient(inputs) if inside > 1 else _replica(inputs), inputs)
    raise ValueError(f"strategy={strategy!r}")


def _replica(inputs: MemoryInputs, buffers: int = 0) -> Prediction:
    """Predict for `single`, and what others build on."""
    whole = FULL * inputs.parameters
    return Prediction(
        {
            WEIGHTS: whole,
            MOMENTS: inputs.moments * whole + (FULL * len(inputs.shapes) if inputs.steps else 0),
            SLOW: 2 * whole,
            BUFFERS: buffers,
        },
        {
            BACKWARD: {GRADIENTS: whole, PACKED: FULL * inputs.packed},
            UPDATE: {GRADIENTS: whole, TEMPORARY: inputs.temporaries * whole},
            EVALUATION: {SWAPPED: whole},  # W, while the model computes with W̄
        },
    )


def _gradient(inputs: MemoryInputs) -> Prediction:
    """Predict for a flat buffer of the gradients, a flag per tensor, loss and stop."""
    return _replica(inputs, buffers=FULL * (inputs.parameters + len(inputs.shapes) + 2))


def _with_sync(model: Prediction, inputs: MemoryInputs) -> Prediction:
    """Add the payload's buffer, and the means on their way back; evaluation averages one copy beside it."""
    numbers = inputs.copies * inputs.parameters
    model.held[BUFFERS] += inputs.payload * (numbers + 2) + FULL * inputs.kept * inputs.parameters
    means = FULL * numbers if inputs.payload == HALF else 0
    model.phases[SYNC] = {COPIES: max(2 * means, means + inputs.payload * numbers)}
    model.phases[EVALUATION][COPIES] = FULL * inputs.parameters
    return model
