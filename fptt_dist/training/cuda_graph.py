"""A batch as one CUDA graph: K windows forward and backward and K updates, launched at once.

A window of a small network is a handful of kernels, each of which takes longer to launch than to run. Captured once, a
batch is replayed with new contents in the same memory: inputs, targets and ids, the incoming states, and the updates'
coefficients (learning rate, α, bias corrections), which are computed on the host for all K updates beforehand.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from fptt_dist.algorithm.fused.update import FusedUpdate
from fptt_dist.parallel import Engine, GradientSync, NoSync, Replicated
from fptt_dist.parallel.comm.communicator import Traffic
from fptt_dist.tasks import Batch
from fptt_dist.training.window_loop import BatchResult, WindowLoop
from fptt_dist.types import State

LOG = logging.getLogger("fptt_dist")
STATE = "state"
FIRST = 3  # batches that run without a graph: they create state, compile, and let cuDNN choose


class Capture(Protocol):
    """Records what a function does on a device, and does it again."""

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Run `function` where it will be recorded; return its result."""
        ...

    def record(self, function: Callable[[], Any]) -> Any:
        """Record `function` without any effect on the device; return its result, which `replay` fills."""
        ...

    def replay(self) -> None:
        """Do what was recorded, in the same memory."""
        ...


class CudaCapture:
    """Records with `torch.cuda.graph`, on a stream of its own.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """See `Capture`."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Any]) -> Any:
        """See `Capture`."""
        with torch.cuda.graph(self._graph, stream=self._stream):
            return function()

    def replay(self) -> None:
        """See `Capture`."""
        self._graph.replay()


def refusal(engine: Engine, device: torch.device) -> str | None:
    """Return why no batch can be captured there, or None."""
    if device.type != "cuda":
        return f"a graph is CUDA's, and the device is {device.type}"
    if type(engine.placement) is not Replicated or type(engine.sync) not in (NoSync, GradientSync):
        return f"{engine.kind} reads values on the host between the windows of a batch"
    return None


class BatchGraph:
    """Runs batches like the `WindowLoop` that it captures.

    The first batches run without a graph, and so do those that are measured, and those of another shape than the
    captured one. Where capturing fails all do, and a warning says why.

    Args:
        loop: runs a batch.
        capture: records it.
    """

    def __init__(self, loop: WindowLoop, capture: Capture) -> None:
        self.loop = loop
        self.capture = capture
        self.updates = loop.updates
        self.captured = False
        self._seen = 0
        self._problem: str | None = None

    def run(
        self, batch: Batch, states: list[State] | None = None, *, measure: bool = False
    ) -> tuple[BatchResult, dict]:
        """Train on one batch; see `WindowLoop.run`. What it returns is overwritten by the next batch."""
        fused = None if measure or self._seen < FIRST or self._problem else self.loop.optimizer.fused_update
        rates = None if fused is None else fused.plan(self.updates)
        self._seen += 1
        if fused is None or rates is None or not self._fits(batch, states):
            return self.capture.warm_up(lambda: self.loop.run(batch, states, measure=measure))
        if not self.captured and not self._record(batch, states, fused, rates):
            return self.capture.warm_up(lambda: self.loop.run(batch, states))
        tensors = _tensors(batch, states)
        for name, tensor in self._inputs.items():
            tensor.copy_(tensors[name])
        self._rates.copy_(rates)
        self.capture.replay()
        fused.count(self.updates)
        self.loop.engine.control.updates += self.updates
        for traffic, cost in self._traffic:
            traffic.calls += cost.calls
            traffic.bytes += cost.bytes
        return self._result, {}

    def _fits(self, batch: Batch, states: list[State] | None) -> bool:
        """Return whether batch and states have the shapes of the captured ones."""
        if batch.lengths is not None:  # they decide on the host what is summed
            return False
        if not self.captured:
            return True
        shapes = {name: tensor.shape for name, tensor in _tensors(batch, states).items()}
        return shapes == {name: tensor.shape for name, tensor in self._inputs.items()}

    def _record(self, batch: Batch, states: list[State] | None, fused: FusedUpdate, rates: Tensor) -> bool:
        """Capture; False, with a warning, where that is not possible. Trains nothing."""
        engine = self.loop.engine
        updates, sent = engine.control.updates, _sent(engine)
        self._inputs = {name: tensor.clone() for name, tensor in _tensors(batch, states).items()}
        self._rates = rates.to(batch.inputs.device)
        own = Batch(
            self._inputs["inputs"], self._inputs["targets"], self._inputs.get("examples"), batch.per_step_targets
        )
        leaves, structure = tree_flatten(states)
        incoming = tree_unflatten([self._inputs.get(f"{STATE}.{i}") for i in range(len(leaves))], structure)
        try:
            with fused.following(list(self._rates.unbind())):
                self._result, _ = self.capture.record(lambda: self.loop.run(own, incoming))
            self.captured = True
        except Exception as error:  # of CUDA, or an operation that cannot be recorded: the loop runs in any case
            self._problem = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
            LOG.warning("the batch is not captured in a CUDA graph (%s): it runs without a graph", self._problem)
            engine.abandon()
        engine.control.updates = updates
        self._traffic = []  # of one batch, to be counted at each replay
        for traffic, before in zip(_traffic(engine), sent, strict=True):
            self._traffic.append((traffic, Traffic(calls=traffic.calls - before[0], bytes=traffic.bytes - before[1])))
            traffic.calls, traffic.bytes = before
        return self.captured


def _tensors(batch: Batch, states: list[State] | None) -> dict[str, Tensor]:
    """Return all input tensors of a batch, by name."""
    tensors = {"inputs": batch.inputs, "targets": batch.targets}
    if batch.examples is not None:
        tensors["examples"] = batch.examples
    leaves = enumerate(tree_leaves(states))
    return tensors | {f"{STATE}.{i}": leaf for i, leaf in leaves if leaf is not None}


def _traffic(engine: Engine) -> list[Traffic]:
    return [traffic for each in engine.communicators() for traffic in each.traffic.values()]


def _sent(engine: Engine) -> list[tuple[int, int]]:
    return [(traffic.calls, traffic.bytes) for traffic in _traffic(engine)]
