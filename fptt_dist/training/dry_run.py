"""What a run would be: everything built, one window of one batch trained, nothing written."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fptt_dist.algorithm import detach
from fptt_dist.parallel.strategy import Plan
from fptt_dist.training.trainer import Trainer


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
        memory: bytes on this worker by what holds them; activations are what the first window's graph really keeps.
    """

    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, int]
    windows: list[tuple[int, int]]
    updates_per_batch: int
    loss: float
    memory: dict[str, int]
    traffic: list[str]

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
            *(f"  {name:<{width - 2}}{size / 2**20:10.3f} MiB" for name, size in self.memory.items()),
            f"  {'sum':<{width - 2}}{sum(self.memory.values()) / 2**20:10.3f} MiB",
            "nothing was written",
        ]


def dry_run(trainer: Trainer) -> DryRun:
    """Train one window of one batch (its first micro-batch's graph is measured) and say what it took.

    Args:
        trainer: as built for the run; its weights are changed, so it is not to be trained on.
    """
    size = trainer.config.train.batch_size
    batch = trainer.task.train_batch(0, 0, size, trainer.share).to(trainer.device)
    part = batch.select(slice(0, batch.size // trainer.loop.micro_batches))
    passes = trainer.loop.procedure.passes(trainer.task.length, trainer.loop.windows)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    own.add(part.inputs.untyped_storage().data_ptr())
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
    plan = trainer.strategy.plan(trainer.loop.updates)

    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    slow, moments = 0, 0
    for entry in trainer.optimizer.state.values():
        for name, value in entry.items():
            if isinstance(value, Tensor) and name in ("center", "scaled_dual"):
                slow += value.numel() * value.element_size()
            elif isinstance(value, Tensor):
                moments += value.numel() * value.element_size()
    first = passes[0]
    return DryRun(
        shapes={
            "inputs of the batch (steps, sequences, numbers)": tuple(batch.inputs.shape),
            "inputs of the first graph": (sum(w.steps for w in first), part.size, trainer.task.inputs),
            "targets": tuple(batch.targets.shape),
            "output of a window": tuple(output.shape),
        },
        parameters=trainer.network.parameter_counts(),
        windows=[(w.part.start, w.part.stop) for windows in passes for w in windows],
        updates_per_batch=trainer.loop.updates,
        loss=float(loss.detach()),
        traffic=_traffic(plan, weights) if trainer.strategy.world > 1 else [],
        memory={
            "weights": weights,
            "gradients": weights,
            "moments of the base optimizer": moments,
            "W̄ and u": slow,
            "activations of one graph": sum(size for pointer, size in kept.items() if pointer not in own),
            "the batch": batch.inputs.numel() * batch.inputs.element_size(),
        },
    )


def _traffic(plan: Plan, gradients: int) -> list[str]:
    """What each worker hands over for one batch of sequences, against data-parallel BPTT's one gradient."""
    return [
        f"what travels: {plan.what}, {plan.each / 2**20:.3f} MiB each",
        f"  a batch of sequences: {plan.collectives:g} collectives, {plan.bytes / 2**20:.3f} MiB a process",
        f"  data-parallel BPTT:   1 collective, {gradients / 2**20:.3f} MiB a process",
    ]
