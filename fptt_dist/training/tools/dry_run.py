"""Dry run: build everything, train one window of one batch, write nothing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fptt_dist.algorithm import SCHEMES, Window, detach
from fptt_dist.config import Config
from fptt_dist.config.schema import optimizers
from fptt_dist.config.schema import parallel as settings
from fptt_dist.parallel import Consensus
from fptt_dist.parallel.comm.comm_estimate import CommEstimate
from fptt_dist.tasks import Batch
from fptt_dist.training.setup.engine import updates_of
from fptt_dist.training.tools import memory_model as memory
from fptt_dist.training.trainer import Trainer


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run, which `--dry-run` prints.

    Attributes:
        shapes: of inputs, targets and outputs of one window, on this worker, by name.
        parameters: "recurrent" and "total".
        windows: first step and stop of each window.
        updates_per_batch: K, or 1 for the baselines with one update.
        loss: of the first graph, the mean over its windows.
        traffic: the payload communicated between the workers, in words; empty for one.
        memory: bytes on this worker by what holds them; activations are those that the first window's graph keeps. With
            several workers, what is not held all the time is predicted, or left out where the weights are sharded.
        predicted: with several workers, the prediction by `memory.predict` for the entries that were measured.
        strategies: memory that strategies without sharding would need, for a person to read.
        peak: with several workers, the predicted peak in bytes, with these activations; 0 for one.
        sharded_by: with several workers that shard the weights, the keys that say so: nothing is predicted for them.
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
    sharded_by: str = ""

    def lines(self) -> list[str]:
        """Return the same for a person to read."""
        steps = sorted({stop - start for start, stop in self.windows})
        sizes = " or ".join(map(str, steps))
        width = max(map(len, [*self.shapes, *self.memory])) + 2
        return [
            *(f"{name:<{width}}{tuple(shape)}" for name, shape in self.shapes.items()),
            f"{'windows':<{width}}{len(self.windows)} of {sizes} steps; {self.updates_per_batch} update(s) per batch",
            f"{'parameters':<{width}}{self.parameters['total']:,}, {self.parameters['recurrent']:,} of them recurrent",
            f"{'loss of the first graph':<{width}}{self.loss:.5g}",
            *self.traffic,
            "memory per worker, estimated",
            *(self._line(name, size, width) for name, size in self.memory.items()),
            self._total(width),
            *self.strategies,
            "nothing was written",
        ]

    def _total(self, width: int) -> str:
        if self.sharded_by:
            return f"  memory is not predicted for {self.sharded_by}"
        if self.peak:
            return self._line("peak, predicted", self.peak, width)
        return self._line("sum", sum(self.memory.values()), width)

    def _line(self, name: str, size: int, width: int) -> str:
        beside = ""
        if self.peak and name in self.predicted:
            other = self.predicted[name]
            beside = ", as predicted" if other == size else f", predicted {other / 2**20:10.3f} MiB"
        return f"  {name:<{width - 2}}{size / 2**20:10.3f} MiB{beside}"


def dry_run(trainer: Trainer) -> DryRun:
    """Train one window of one batch (its first micro-batch's graph is measured) and return what it took.

    Args:
        trainer: as built for the run; its weights are changed, so it is not to be trained on.
    """
    size = trainer.config.train.batch_size
    batch = trainer.task.train_batch(0, 0, size, trainer.share).to(trainer.device)
    part = batch.select(slice(0, batch.size // trainer.loop.micro_batches))
    passes = list(trainer.loop.passes(len(batch.inputs)))
    if trainer.average is not None:
        trainer.average.begin()  # it is held for most of a run
    with trainer.engine.placement.collective_errors():
        output, loss, activations = _first_update(trainer, part, passes)
    plan = trainer.engine.comm_estimate(trainer.loop.updates)
    held = held_bytes(trainer)
    shapes = [trainer.shapes[name] for name, _ in trainer.network.named_parameters()]
    inputs = memory_inputs(trainer.config, shapes, trainer.device)
    world = trainer.engine.world
    gradients = sum(math.prod(shape) * 4 for shape in shapes)
    predicted, peak, sharded_by = {}, 0, _sharded_by(trainer)
    if world > 1 and not sharded_by:
        prediction = memory.predict(inputs, _name_of(trainer.config), inside=_inside(trainer))
        rows = prediction.rows
        predicted = {name: rows[name] for name, size in held.items() if size or rows[name]}
        held = {name: held.get(name, size) for name, size in rows.items() if name in predicted or size}
        peak = prediction.peak(activations)
    elif world == 1:
        held = {memory.WEIGHTS: held.pop(memory.WEIGHTS), memory.GRADIENTS: gradients, **held}
    first = passes[0]
    return DryRun(
        shapes={
            "inputs of the batch (steps, sequences, features)": tuple(batch.inputs.shape),
            "inputs of the first graph": (sum(w.steps for w in first), *part.inputs.shape[1:]),
            "targets": tuple(batch.targets.shape),
            "output of a window": output,
        },
        parameters=trainer.counts,
        windows=[(w.part.start, w.part.stop) for windows in passes for w in windows],
        updates_per_batch=trainer.loop.updates,
        loss=loss,
        traffic=_traffic(plan, gradients) if trainer.engine.world > 1 else [],
        memory={
            **held,
            "activations of one graph": activations,
            "the batch": batch.inputs.numel() * batch.inputs.element_size(),
        },
        predicted=predicted,
        strategies=_table(inputs),
        peak=peak,
        sharded_by=sharded_by,
    )


def _first_update(trainer: Trainer, part: Batch, passes: list[list[Window]]) -> tuple[tuple[int, ...], float, int]:
    """Train the first graph; return the shape of a window's output, the loss, and the bytes that the graph kept."""
    kept: dict[int, int] = {}
    own = {part.inputs.untyped_storage().data_ptr()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        own.update(_pointers(trainer.model.parameters()))  # which may be gathered for this window only
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
    trainer.engine.backward(loss, last=True)
    trainer.engine.step(
        lambda: None
    ) if trainer.optimizer.constants.update_rule == "second_gradient" else trainer.engine.step()
    activations = sum(size for pointer, size in kept.items() if pointer not in own)
    return tuple(output.shape), float(loss.detach()), activations


def held_bytes(trainer: Trainer) -> dict[str, int]:
    """Return the bytes of the tensors that this worker holds for its shard all the time, by kind, with padding."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.network.parameters()]
    weights = _storages(getattr(part, "ds_tensor", part) for part in parts)
    stepped = _storages(p for group in trainer.optimizer.param_groups for p in group["params"])
    slow, base = 0, 0
    for entry in trainer.optimizer.state.values():
        for name, value in entry.items():
            if isinstance(value, Tensor) and name in ("center", "scaled_dual"):
                slow += value.numel() * value.element_size()
            elif isinstance(value, Tensor):
                base += value.numel() * value.element_size()
    master = sum(size for pointer, size in stepped.items() if pointer not in weights)
    return {
        memory.WEIGHTS: sum(weights.values()),
        **({memory.MASTER: master} if master else {}),
        memory.MOMENTS: base,
        memory.SLOW: slow,
    }


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the bytes of the tensors' storages, by address."""
    found = [t.untyped_storage() for t in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def _pointers(tensors: Iterable[Tensor]) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors if not isinstance(t, DTensor)}


def _inside(trainer: Trainer) -> int:
    """Return the number of workers of this node that hold one replica together, or average their gradients."""
    sync, placement = trainer.engine.sync, trainer.engine.placement
    if not isinstance(sync, Consensus):
        return 1
    return (placement if sync.intra_node is None else sync.intra_node).workers.world


def _traffic(plan: CommEstimate, gradients: int) -> list[str]:
    """Describe each worker's payload for one batch of sequences, against data-parallel BPTT's one gradient."""
    return [
        f"payload: {plan.what}, {plan.each / 2**20:.3f} MiB each",
        f"  per batch of sequences: {plan.collectives:g} collectives, {plan.bytes / 2**20:.3f} MiB per worker",
        f"  data-parallel BPTT:     1 collective, {gradients / 2**20:.3f} MiB per worker",
    ]


def memory_inputs(config: Config, shapes: memory.Shapes, device: torch.device) -> memory.MemoryInputs:
    """Return what a run's memory depends on.

    Args:
        config: of the run.
        shapes: of all parameters.
        device: where it computes.
    """
    regularized = SCHEMES[config.algorithm].has_regularizer and config.fptt.alpha > 0.0
    preconditioned = regularized and config.fptt.metric == "preconditioned"
    match config.optimizer:
        case optimizers.SGD() as sgd:
            moments, steps = int(sgd.momentum > 0.0), False
        case optimizers.NtAsgd():
            moments, steps = 1, False  # the mean of the weights, once it has begun
        case optimizers.Adam() | optimizers.AdamW() as adam:
            moments, steps = 2 + int(adam.amsgrad), True
        case optimizers.RMSprop() as rmsprop:
            moments, steps = 1 + int(rmsprop.momentum > 0.0), True
    return memory.MemoryInputs(
        shapes,
        moments,
        steps,
        # the preconditioner holds the regularizer's gradient, v̂, √v̂ and their divisor; the metrics' norms hold the
        # regularizer's gradient, W − W̄ and λ
        temporaries=4 if preconditioned else 3,
        on_cpu=device.type == "cpu",
        **_sync_copies(config),
    )


def _sync_copies(config: Config) -> dict[str, int]:
    """Return the copies that a sync sends and that it keeps, as `AveragedDual` and `LocalDual` do."""
    parallel = config.parallel
    if not isinstance(parallel, settings.ConsensusParallel):
        parallel = settings.ConsensusParallel()
    procedure, payload = SCHEMES[config.algorithm], memory.HALF if parallel.sync_dtype == "bf16" else memory.FULL
    if parallel.dual == "local":  # W and μ are sent; Z, μ and μ̄ are kept
        return {"copies": 2, "payload": payload, "kept": 3}
    every = parallel.sync_every or updates_of(config)
    derived = every == 1 and parallel.weight_sync == "average" and config.fptt.update_rule != "second_gradient"
    alone = derived or not procedure.has_regularizer
    copies = 1 if alone else 2 + int(parallel.weight_sync == "average")
    late = copies + int(parallel.weight_sync == "center" and not alone) if parallel.sync_delay else 0
    return {"copies": copies, "payload": payload, "kept": (copies if payload == memory.HALF else 0) + late}


def _sharded_by(trainer: Trainer) -> str:
    """Return the keys by which several workers shard the weights; "" where each holds all of them."""
    match trainer.config.parallel:
        case (settings.FsdpParallel() | settings.DeepspeedParallel()) as parallel if trainer.engine.world > 1:
            return f"parallel.strategy={parallel.strategy}"
        case settings.HierarchicalParallel(intra_node="fsdp") if _inside(trainer) > 1:
            return "parallel.strategy=hierarchical parallel.intra_node=fsdp"
        case _:
            return ""


def _name_of(config: Config) -> str:
    """Return the strategy of a run of several workers, none of which shards, as `predict` names it."""
    match config.parallel:
        case settings.DataParallel(reduce="ddp"):
            return "ddp"
        case settings.AutoParallel():
            return "consensus"
        case parallel:
            return parallel.strategy


def _table(inputs: memory.MemoryInputs) -> list[str]:
    """Compare the strategies of several workers, one line each."""
    lines = ["memory per worker by strategy, predicted without activations"]
    for name in memory.STRATEGIES[1:]:
        found = memory.predict(inputs, name)
        lines.append(f"  {name:<12}{found.resident / 2**20:12.3f} MiB held, {found.peak() / 2**20:12.3f} MiB peak")
    return lines
