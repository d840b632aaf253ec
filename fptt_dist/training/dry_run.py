"""What a run would be: everything built, one window of one batch trained, nothing written."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fptt_dist.algorithm import PROCEDURES, Window, detach
from fptt_dist.config import Config, optimizers
from fptt_dist.config import parallel as settings
from fptt_dist.parallel import Consensus, GroupCommunicator
from fptt_dist.parallel.strategy import Plan
from fptt_dist.tasks import Batch
from fptt_dist.training import memory
from fptt_dist.training.build_strategy import updates_of
from fptt_dist.training.trainer import Trainer

COMPARED = 8  # processes, where one alone asks what several would need


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` prints.

    Attributes:
        shapes: of inputs, targets and outputs of one window, on this worker, by name.
        parameters: "recurrent" and "total".
        windows: first step and stop of each window.
        updates_per_batch: K, or 1 for the baselines with one update.
        loss: of the first graph, the mean over its windows.
        traffic: what travels between the workers, in words; empty for one.
        memory: bytes on this worker by what holds them; activations are what the first window's graph really keeps,
            and of several workers what is not held all the time is predicted.
        predicted: of several workers, what `memory.predict` gives for what was counted; the rest is predicted itself.
        strategies: what each strategy would need, for a person to read.
        peak: of several workers, the most bytes at any time, predicted, with these activations; 0 for one.
    """

    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, int]
    windows: list[tuple[int, int]]
    updates_per_batch: int
    loss: float
    memory: dict[str, int]
    traffic: list[str]
    predicted: dict[str, int] = field(default_factory=dict)
    strategies: list[str] = field(default_factory=list)
    peak: int = 0

    def lines(self) -> list[str]:
        """The same for a person to read."""
        steps = sorted({stop - start for start, stop in self.windows})
        sizes = " or ".join(map(str, steps))
        width = max(map(len, [*self.shapes, *self.memory])) + 2
        return [
            *(f"{name:<{width}}{tuple(shape)}" for name, shape in self.shapes.items()),
            f"{'windows':<{width}}{len(self.windows)} of {sizes} steps; {self.updates_per_batch} update(s) a batch",
            f"{'parameters':<{width}}{self.parameters['total']:,}, {self.parameters['recurrent']:,} of them recurrent",
            f"{'loss of the first graph':<{width}}{self.loss:.5g}",
            *self.traffic,
            "memory a process, estimated",
            *(self._line(name, size, width) for name, size in self.memory.items()),
            self._line("at most at one time, predicted", self.peak, width)
            if self.peak
            else self._line("sum", sum(self.memory.values()), width),
            *self.strategies,
            "nothing was written",
        ]

    def _line(self, name: str, size: int, width: int) -> str:
        beside = ""
        if self.peak and name in self.predicted:
            other = self.predicted[name]
            beside = ", as predicted" if other == size else f", predicted {other / 2**20:10.3f} MiB"
        return f"  {name:<{width - 2}}{size / 2**20:10.3f} MiB{beside}"


def dry_run(trainer: Trainer) -> DryRun:
    """Train one window of one batch (its first micro-batch's graph is measured) and say what it took.

    Args:
        trainer: as built for the run; its weights are changed, so it is not to be trained on.
    """
    size = trainer.config.train.batch_size
    batch = trainer.task.train_batch(0, 0, size, trainer.share).to(trainer.device)
    part = batch.select(slice(0, batch.size // trainer.loop.micro_batches))
    passes = list(trainer.loop.passes(len(batch.inputs)))
    if trainer.average is not None:
        trainer.average.begin()  # it is held for most of a run
    with trainer.strategy.guarding():
        output, loss, activations = _first_update(trainer, part, passes)
    plan = trainer.strategy.plan(trainer.loop.updates)
    held = held_bytes(trainer)
    shapes = [trainer.shapes[name] for name, _ in trainer.network.named_parameters()]
    training = training_of(trainer.config, shapes, trainer.device)
    world = trainer.strategy.world
    gradients = sum(math.prod(shape) * 4 for shape in shapes)
    predicted, peak = {}, 0
    if world > 1:
        prediction = memory.predict(
            training,
            _name_of(trainer.config),
            world,
            rank=trainer.strategy.rank,
            inside=_inside(trainer),
        )
        rows = prediction.rows
        predicted = {name: rows[name] for name, size in held.items() if size or rows[name]}
        held = {name: held.get(name, size) for name, size in rows.items() if name in predicted or size}
        peak = prediction.peak(activations)
    else:
        held = {name: size for name, size in held.items() if name != memory.MASTER}
        held = {memory.WEIGHTS: held.pop(memory.WEIGHTS), memory.GRADIENTS: gradients, **held}
    first = passes[0]
    return DryRun(
        shapes={
            "inputs of the batch (steps, sequences, numbers)": tuple(batch.inputs.shape),
            "inputs of the first graph": (sum(w.steps for w in first), *part.inputs.shape[1:]),
            "targets": tuple(batch.targets.shape),
            "output of a window": output,
        },
        parameters=trainer.counts,
        windows=[(w.part.start, w.part.stop) for windows in passes for w in windows],
        updates_per_batch=trainer.loop.updates,
        loss=loss,
        traffic=_traffic(plan, gradients) if trainer.strategy.world > 1 else [],
        memory={
            **held,
            "activations of one graph": activations,
            "the batch": batch.inputs.numel() * batch.inputs.element_size(),
        },
        predicted=predicted,
        strategies=_table(training, world if world > 1 else COMPARED),
        peak=peak,
    )


def _first_update(trainer: Trainer, part: Batch, passes: list[list[Window]]) -> tuple[tuple[int, ...], float, int]:
    """Train the first graph; the shape of a window's output, the loss, and the bytes that the graph kept."""
    kept: dict[int, int] = {}
    own = {part.inputs.untyped_storage().data_ptr()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        own.update(_pointers(trainer.model.parameters()))  # which may be gathered for this window alone
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output, state, loss = None, None, torch.zeros((), device=trainer.device)
        for window in passes[0]:
            output, state = trainer.model(part.inputs[window.part], detach(state) if len(passes) > 1 else state)
            loss = loss + trainer.task.loss(
                output.float(), part.target(window.part), window, examples=part.examples, observe=False
            )
    assert output is not None
    loss = loss / len(passes[0])
    trainer.strategy.backward(loss, last=True)
    trainer.strategy.step(lambda: None) if trainer.optimizer.update == "algorithm2" else trainer.strategy.step()
    activations = sum(size for pointer, size in kept.items() if pointer not in own)
    return tuple(output.shape), float(loss.detach()), activations


def held_bytes(trainer: Trainer) -> dict[str, int]:
    """Bytes of the tensors that this worker holds for its part all the time, by what they are; padding counts."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.network.parameters()]
    weights = _storages(getattr(part, "ds_tensor", part) for part in parts)
    stepped = _storages(p for group in trainer.optimizer.param_groups for p in group["params"])
    slow, moments = 0, 0
    for entry in trainer.optimizer.state.values():
        for name, value in entry.items():
            if isinstance(value, Tensor) and name in ("center", "scaled_dual"):
                slow += value.numel() * value.element_size()
            elif isinstance(value, Tensor):
                moments += value.numel() * value.element_size()
    return {
        memory.WEIGHTS: sum(weights.values()),
        memory.MASTER: sum(size for pointer, size in stepped.items() if pointer not in weights),
        memory.MOMENTS: moments,
        memory.SLOW: slow,
    }


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of what holds the tensors, by its address."""
    found = [t.untyped_storage() for t in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def _pointers(tensors: Iterable[Tensor]) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors if not isinstance(t, DTensor)}


def _inside(trainer: Trainer) -> int:
    """Workers of this machine that hold one copy together, or average their gradients."""
    strategy = trainer.strategy
    if isinstance(strategy, Consensus) and isinstance(strategy.inside.everyone, GroupCommunicator):
        return strategy.inside.everyone.world
    return 1


def _traffic(plan: Plan, gradients: int) -> list[str]:
    """What each worker hands over for one batch of sequences, against data-parallel BPTT's one gradient."""
    return [
        f"what travels: {plan.what}, {plan.each / 2**20:.3f} MiB each",
        f"  a batch of sequences: {plan.collectives:g} collectives, {plan.bytes / 2**20:.3f} MiB a process",
        f"  data-parallel BPTT:   1 collective, {gradients / 2**20:.3f} MiB a process",
    ]


def training_of(config: Config, shapes: memory.Shapes, device: torch.device) -> memory.Training:
    """What a run's memory depends on.

    Args:
        config: of the run.
        shapes: of all parameters.
        device: where it computes.
    """
    force = PROCEDURES[config.algorithm].has_force and config.fptt.alpha > 0.0
    preconditioned = force and config.fptt.metric == "preconditioned"
    match config.optimizer:
        case optimizers.SGD() as sgd:
            moments, steps = int(sgd.momentum > 0.0), False
        case optimizers.NtAsgd():
            moments, steps = 1, False  # the mean of the weights, once it has begun
        case optimizers.Adam() | optimizers.AdamW() as adam:
            moments, steps = 2 + int(adam.amsgrad), True
        case optimizers.RMSprop() as rmsprop:
            moments, steps = 1 + int(rmsprop.momentum > 0.0), True
    return memory.Training(
        shapes,
        moments,
        steps,
        # the preconditioner holds the pull, v̂, √v̂ and their divisor; telemetry's norms the pull, W − W̄ and λ
        temporaries=4 if preconditioned else 3,
        bf16=config.train.precision == "bf16",
        gloo=device.type == "cpu",
        **_agreement_of(config),
    )


def _agreement_of(config: Config) -> dict[str, int]:
    """Copies that travel and that are kept, by the rules of `SharedDual` and `WorkerDual`."""
    parallel = config.parallel
    if not isinstance(parallel, settings.ConsensusParallel):
        parallel = settings.ConsensusParallel()
    procedure, payload = PROCEDURES[config.algorithm], memory.HALF if parallel.payload == "bf16" else memory.FULL
    if parallel.dual == "worker":  # W and μ travel; Z, μ and μ̄ stay
        return {"copies": 2, "payload": payload, "kept": 3}
    every = parallel.every or updates_of(config)
    derived = every == 1 and parallel.weights == "mean" and config.fptt.update != "algorithm2"
    alone = derived or not procedure.has_force
    copies = int(parallel.weights != "kept") if alone else 2 + int(parallel.weights == "mean")
    late = copies + int(parallel.weights == "center" and not alone) if parallel.delay else 0
    return {"copies": copies, "payload": payload, "kept": (copies if payload == memory.HALF else 0) + late}


def _name_of(config: Config) -> str:
    """The strategy of a run of several workers, as `predict` names it."""
    match config.parallel:
        case settings.HierarchicalParallel(inside="fsdp"):
            return "hierarchical fsdp"
        case settings.DeepspeedParallel(stage=stage):
            return f"deepspeed {stage}"
        case settings.GradientParallel(reduce="ddp"):
            return "ddp"
        case settings.AutoParallel():
            return "consensus"
        case parallel:
            return parallel.strategy


def _table(training: memory.Training, world: int) -> list[str]:
    """Every strategy for so many processes, to compare: one line each."""
    lines = [f"memory a process by strategy, {world} processes, predicted without activations"]
    for name in memory.STRATEGIES[1:]:
        found = memory.predict(training, name, world)
        lines.append(f"  {name:<12}{found.resident / 2**20:12.3f} MiB held, {found.peak() / 2**20:12.3f} MiB at most")
    return lines
