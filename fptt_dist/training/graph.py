"""A batch as one CUDA graph: K windows forward and backward and K updates, launched at once.

A window of a small network is a handful of kernels, each of which takes longer to launch than to run. Captured once, a
batch is replayed with new contents in the same memory: inputs, targets and ids, the incoming states, and the updates'
coefficients (learning rate, α, bias corrections), which are worked out on the host for all K updates before.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fptt_dist.parallel import GradientAveraging, Single, Strategy
from fptt_dist.parallel.collectives import Traffic
from fptt_dist.tasks import Batch
from fptt_dist.training.batch import BatchResult, WindowLoop
from fptt_dist.training.nested import flatten, unflatten

LOG = logging.getLogger("fptt_dist")
STATES = "states"
FIRST = 3  # batches that run as they are: they make state, compile, and let cuDNN choose


class Capture(Protocol):
    """Records what a function does on a device, and does it again."""

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Run `function` where it is going to be recorded; its result."""
        ...

    def record(self, function: Callable[[], Any]) -> Any:
        """Record `function` without any effect on the device; what it returned, to be filled by `replay`."""
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


def refusal(strategy: Strategy, device: torch.device) -> str | None:
    """Why no batch can be captured there, or None."""
    if device.type != "cuda":
        return f"a graph is CUDA's, and the device is {device.type}"
    if type(strategy) not in (Single, GradientAveraging):
        return f"{type(strategy).__name__} looks at numbers on the host between the windows of a batch"
    return None


class BatchGraph:
    """Runs batches like the `WindowLoop` that it captures.

    The first batches run as they are, and so do those that are measured, and those of another shape than the captured
    one. Where capturing fails all do, and a warning says why.

    Args:
        loop: what runs a batch.
        capture: what records.
    """

    def __init__(self, loop: WindowLoop, capture: Capture) -> None:
        self.loop = loop
        self.capture = capture
        self.updates = loop.updates
        self.captured = False
        self._seen = 0
        self._problem: str | None = None

    def run(self, batch: Batch, states: list[Any] | None = None, *, measure: bool = False) -> tuple[BatchResult, dict]:
        """Train on one batch; see `WindowLoop.run`. What it returns is overwritten by the next batch."""
        rates = None if measure or self._seen < FIRST or self._problem else self.loop.optimizer.plan(self.updates)
        self._seen += 1
        if rates is None or not self._fits(batch, states):
            return self.capture.warm_up(lambda: self.loop.run(batch, states, measure=measure))
        if not self.captured and not self._record(batch, states, rates):
            return self.capture.warm_up(lambda: self.loop.run(batch, states))
        tensors = _tensors(batch, states)
        for name, tensor in self._inputs.items():
            tensor.copy_(tensors[name])
        self._rates.copy_(rates)
        self.capture.replay()
        self.loop.optimizer.count(self.updates)
        self.loop.strategy.window += self.updates
        for traffic, cost in self._traffic:
            traffic.calls += cost.calls
            traffic.bytes += cost.bytes
        return self._result, {}

    def _fits(self, batch: Batch, states: list[Any] | None) -> bool:
        """Whether batch and states are shaped like the captured ones."""
        if not self.captured:
            return True
        shapes = {name: tensor.shape for name, tensor in _tensors(batch, states).items()}
        return shapes == {name: tensor.shape for name, tensor in self._inputs.items()}

    def _record(self, batch: Batch, states: list[Any] | None, rates: Tensor) -> bool:
        """Capture; False, with a warning, where that is not possible. Trains nothing."""
        strategy = self.loop.strategy
        window, sent = strategy.window, _sent(strategy)
        self._inputs = {name: tensor.clone() for name, tensor in _tensors(batch, states).items()}
        self._rates = rates.to(batch.inputs.device)
        own = Batch(
            self._inputs["inputs"], self._inputs["targets"], self._inputs.get("examples"), batch.targets_in_time
        )
        incoming = unflatten(flatten(states, {}, STATES), self._inputs)
        try:
            with self.loop.optimizer.following(list(self._rates.unbind())):
                self._result, _ = self.capture.record(lambda: self.loop.run(own, incoming))
            self.captured = True
        except Exception as error:  # of CUDA or of what cannot be recorded: there is always the other way
            self._problem = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
            LOG.warning("the batch is not captured in a CUDA graph (%s): it runs as it is", self._problem)
            self.loop.optimizer.zero_grad()
        strategy.window = window
        self._traffic = []  # of one batch, to be counted at each replay
        for traffic, before in zip(_traffic(strategy), sent, strict=True):
            self._traffic.append((traffic, Traffic(calls=traffic.calls - before[0], bytes=traffic.bytes - before[1])))
            traffic.calls, traffic.bytes = before
        return self.captured


def _tensors(batch: Batch, states: list[Any] | None) -> dict[str, Tensor]:
    """All that comes into a batch, by name."""
    tensors = {"inputs": batch.inputs, "targets": batch.targets}
    if batch.examples is not None:
        tensors["examples"] = batch.examples
    flatten(states, tensors, STATES)
    return tensors


def _traffic(strategy: Strategy) -> list[Traffic]:
    return [traffic for each in strategy.communicators() for traffic in each.traffic.values()]


def _sent(strategy: Strategy) -> list[tuple[int, int]]:
    return [(traffic.calls, traffic.bytes) for traffic in _traffic(strategy)]
