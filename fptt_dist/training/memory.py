"""How many bytes a process needs, from the code of the strategies: who holds what, and what a window takes on top.

    peak = what is held all the time + the largest phase                activations are not here: see the dry run

A phase is an upper bound: it adds up what may be alive together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fptt_dist.parallel.deepspeed import BUCKET

FULL, HALF = 4, 2  # bytes of a number

WEIGHTS, MASTER, MOMENTS, SLOW = "weights", "master weights", "moments of the base optimizer", "W̄ and u"
BUFFERS, GATHERED, GRADIENTS = "buffers of the collectives", "weights gathered for a window", "gradients"
COPIES, TEMPORARY, PACKED = "copies made by the collectives", "temporaries of the update", "packed weights of a layer"
FORWARD, BACKWARD, AVERAGING, UPDATE = "forward", "backward", "averaging", "update"
AGREEMENT, EVALUATION = "agreement", "evaluation"
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Training:
    """What the numbers depend on, the strategy apart.

    Attributes:
        shapes: of all parameters.
        moments: tensors of the base optimizer beside each parameter (Adam: 2).
        steps: whether it also counts its steps, a number a tensor.
        temporaries: copies of what a process keeps that one update makes on the way.
        bf16: whether sharded strategies compute in bf16.
        copies: of the model, that travel at an agreement of consensus.
        payload: bytes of a number that travels there.
        kept: further copies that the agreement keeps (worker duals: Z, μ, μ̄; bf16: the last agreed points).
        gloo: whether the processes are connected by gloo, whose reduce-scatter sums a copy of the whole.
    """

    shapes: Shapes
    moments: int = 2
    steps: bool = True
    temporaries: int = 4
    bf16: bool = False
    copies: int = 3
    payload: int = FULL
    kept: int = 0
    gloo: bool = True

    @property
    def parameters(self) -> int:
        """N."""
        return sum(map(math.prod, self.shapes))

    @property
    def bucket(self) -> int:
        """Numbers in DeepSpeed's reduce bucket, unless the user's file says otherwise."""
        return min(BUCKET, self.parameters)

    def packed(self, *, backward: bool = False) -> int:
        """Numbers that oneDNN packs for one layer's call on a CPU: its two matrices, taken to be the largest there are.

        Backward it packs them twice where their rows are no multiple of 16 numbers (seen of an LSTM by itself). On a
        GPU what cuDNN packs is kept by the graph, so the dry run counts it as activations.
        """
        largest = sorted(self.shapes, key=math.prod)[-2:]
        twice = backward and any(shape[-1] % 16 for shape in largest)
        return sum(map(math.prod, largest)) * (1 + twice) if self.gloo else 0


@dataclass
class Prediction:
    """Bytes of one process by what holds them.

    Attributes:
        held: all the time.
        phases: on top, each by what holds it; only one phase is under way.
    """

    held: dict[str, int] = field(default_factory=dict)
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def resident(self) -> int:
        """Bytes that are held all the time."""
        return sum(self.held.values())

    def peak(self, activations: int = 0) -> int:
        """The most at any time; `activations` is what the graph of one window keeps."""
        kept = {FORWARD: activations, BACKWARD: activations}
        extra = [sum(rows.values()) + kept.get(name, 0) for name, rows in self.phases.items()]
        return self.resident + max(extra)

    @property
    def rows(self) -> dict[str, int]:
        """What is held, and the largest of each thing that is not."""
        found = dict(self.held)
        for rows in self.phases.values():
            for name, size in rows.items():
                if name not in self.held:
                    found[name] = max(found.get(name, 0), size)
        return found


def predict(training: Training, strategy: str, world: int, *, rank: int = 0, inside: int = 1) -> Prediction:
    """What a process holds.

    Args:
        training: the model and its optimizer.
        strategy: one of `STRATEGIES`; also "hierarchical" and "hierarchical fsdp".
        world: processes; of "hierarchical": all of them.
        rank: which; the first holds the most.
        inside: processes of a machine, for "hierarchical".
    """
    match strategy:
        case "single":
            return _whole(training)
        case "gradient":
            return _gradient(training)
        case "ddp":
            return _whole(training, buffers=FULL * training.parameters)
        case "consensus":
            return _with_agreement(_whole(training), training, training.parameters)
        case "hierarchical":
            model = _gradient(training) if inside > 1 else _whole(training)
            return _with_agreement(model, training, training.parameters)
        case "hierarchical fsdp":
            if inside == 1:
                return predict(training, "consensus", world)
            part = sum(_rows(shape, inside, rank % inside) for shape in training.shapes)
            return _with_agreement(_fsdp(training, inside, rank % inside), training, part)
        case "fsdp":
            return _fsdp(training, world, rank)
        case "deepspeed 1" | "deepspeed 2":
            return _zero_flat(training, world, split_gradients=strategy == "deepspeed 2")
        case "deepspeed 3":
            return _zero_split(training, world)
    raise ValueError(f"strategy={strategy!r}")


STRATEGIES = ("single", "gradient", "consensus", "fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3")


def _kept(training: Training, weights: int, master: int, own: int, tensors: int, buffers: int) -> dict[str, int]:
    """What is held by a process that steps `own` numbers in `tensors` tensors."""
    return {
        WEIGHTS: weights,
        MASTER: master,
        MOMENTS: FULL * training.moments * own + (FULL * tensors if training.steps else 0),
        SLOW: FULL * 2 * own,
        BUFFERS: buffers,
    }


def _update(training: Training, own: int, before: int = 0) -> dict[str, int]:
    """The gradient of what is stepped, and what FPTT and the base optimizer make on the way."""
    return {GRADIENTS: FULL * own + before, TEMPORARY: FULL * training.temporaries * own}


def _whole(training: Training, buffers: int = 0) -> Prediction:
    """Whole copies: `single`, and what others start from."""
    whole = FULL * training.parameters
    held = _kept(training, whole, 0, training.parameters, len(training.shapes), buffers)
    return Prediction(
        held,
        {
            BACKWARD: {GRADIENTS: whole, PACKED: FULL * training.packed(backward=True)},
            UPDATE: _update(training, training.parameters),
            EVALUATION: {GATHERED: whole},  # W, while the model computes with W̄
        },
    )


def _gradient(training: Training) -> Prediction:
    """A flat buffer: the gradients, a flag a tensor, loss and stop."""
    return _whole(training, buffers=FULL * (training.parameters + len(training.shapes) + 2))


def _with_agreement(model: Prediction, training: Training, own: int) -> Prediction:
    """The payload's buffer, and the means on their way back; evaluation averages one copy beside it."""
    numbers = training.copies * own
    model.held[BUFFERS] += training.payload * (numbers + 2) + FULL * training.kept * own
    means = FULL * numbers if training.payload == HALF else 0
    model.phases[AGREEMENT] = {COPIES: max(2 * means, means + training.payload * numbers)}
    model.phases[EVALUATION][COPIES] = FULL * own
    return model


def _rows(shape: Sequence[int], world: int, rank: int) -> int:
    """Numbers of a parameter that FSDP2 gives a worker: rows, as torch.chunk deals them."""
    first = shape[0] if shape else 1
    each = -(-first // world)
    return max(0, min(each, first - rank * each)) * math.prod(shape[1:])


def _fsdp(training: Training, world: int, rank: int) -> Prediction:
    """The part is padded to equal rows; the network is one unit.

    Forward: the flat buffer of the all-gather lives beside the weights that were copied out of it. Backward: these
    weights are freed before their gradients are copied into the reduce-scatter's flat buffer, and these before the sum.
    """
    own = sum(_rows(shape, world, rank) for shape in training.shapes)
    padded = sum(_rows(shape, world, 0) for shape in training.shapes)
    whole, width = padded * world, HALF if training.bf16 else FULL
    return Prediction(
        _kept(training, FULL * padded, 0, own, len(training.shapes), 0),
        {
            FORWARD: {GATHERED: 2 * width * whole, PACKED: width * training.packed()},
            BACKWARD: {
                GATHERED: width * whole,
                GRADIENTS: width * whole,
                PACKED: width * training.packed(backward=True),
            },
            "copy": {GRADIENTS: width * whole, COPIES: FULL * whole},
            AVERAGING: {COPIES: FULL * (whole * (2 if training.gloo else 1) + padded)},
            UPDATE: _update(training, own),
            EVALUATION: {GATHERED: FULL * training.parameters},
        },
    )


def _zero_flat(training: Training, world: int, *, split_gradients: bool) -> Prediction:
    """ZeRO 1 and 2: one flat copy of the weights, a multiple of 2 R numbers, and a master copy of this worker's part.

    A gradient is moved into the bucket as it comes; the bucket is flattened once more for the all-reduce.
    """
    whole, width = -(-training.parameters // (2 * world)) * 2 * world, HALF if training.bf16 else FULL
    own = whole // world
    gradients = width * training.parameters
    # kept of the gradient: whole tensors of which a part is this worker's, at most one more at each end; bf16: in fp32
    apart = training.bf16 and split_gradients
    kept = 0 if apart else width * min(training.parameters, own + 2 * max(map(math.prod, training.shapes)))
    return Prediction(
        _kept(training, width * whole, FULL * own, own, 1, 0),
        {
            BACKWARD: {
                GRADIENTS: gradients + (FULL * own if apart else 0),
                COPIES: width * training.bucket + gradients,
            },
            UPDATE: _update(training, own, kept),
            EVALUATION: {GATHERED: FULL * training.parameters},
        },
    )


def _zero_split(training: Training, world: int) -> Prediction:
    """ZeRO 3: a part of each parameter, padded to equal sizes. The master copy is one in full precision too: DeepSpeed
    0.19 means to share it, but compares a device with a device's name.
    """
    own = sum(-(-math.prod(shape) // world) for shape in training.shapes)
    whole, width, copies = own * world, HALF if training.bf16 else FULL, 2 if training.gloo else 1
    held = _kept(training, width * own, FULL * own, own, 1, 0)
    held[BUFFERS] = width * training.bucket + FULL * own  # the bucket, and the averaged gradients of this part
    return Prediction(
        held,
        {
            FORWARD: {GATHERED: 2 * width * whole, PACKED: width * training.packed()},
            BACKWARD: {GATHERED: width * whole, COPIES: width * whole * copies, GRADIENTS: width * training.parameters},
            UPDATE: _update(training, own),
            EVALUATION: {GATHERED: FULL * training.parameters},
        },
    )
