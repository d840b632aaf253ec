"""The loop over a batch's windows, alone: no host number in its way, no operation too many."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fptt_dist.algorithm import FPTT, SCHEMES, TerminalLoss
from fptt_dist.algorithm.target_estimates import UniformEstimate
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.tasks import Adding, Batch
from fptt_dist.training.window_loop import WindowLoop
from tests.parallel.toys import single_worker

LENGTH, SIZE, CLASSES = 12, 6, 3


class Labelled(Adding):
    """Sequences with a label each, and a metric that counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__(length=LENGTH, examples=20, seed=0)
        self.loss = TerminalLoss(UniformEstimate(CLASSES))
        self.asked = 0

    def window_metric(self, output: Tensor, target: Tensor) -> Tensor:
        self.asked += 1
        return (output[-1].argmax(-1) == target).float().mean()


def loop(procedure: str = "fptt", **options: Any) -> WindowLoop:
    torch.manual_seed(0)
    net = Network(recurrent_layer("lstm", 1, 4), 4, CLASSES, output_steps="last")
    engine = single_worker()
    engine.prepare(net)
    optimizer = FPTT(torch.optim.Adam(net.parameters(), lr=0.01, foreach=True), alpha=0.5, max_norm=1.0)
    engine.attach(optimizer)
    return WindowLoop(net, Labelled(), engine, optimizer, SCHEMES[procedure], windows=4, **options)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(LENGTH, SIZE, 1, generator=generator)
    return Batch(inputs, torch.randint(0, CLASSES, (SIZE,), generator=generator))


class Calls(TorchDispatchMode):
    """Counts the operations, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("procedure", ["fptt", "tbptt", "tbptt_accumulated", "bptt_aux", "bptt"])
def test_forward_and_backward_read_nothing_on_the_host(procedure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a window can be captured in a CUDA graph: no number is read, and none is made from Python's."""
    trained = loop(procedure)
    monkeypatch.setattr(trained.engine, "step", lambda closure=None, *, measure=None: {})
    with Calls() as calls:
        trained.run(batch())
    assert calls.count["detach"] > 0
    assert not {"_local_scalar_dense", "lift_fresh", "lift_fresh_copy", "_to_copy", "nonzero"} & calls.count.keys()


def test_the_metric_is_read_where_it_is_asked_for() -> None:
    trained = loop()
    result, norms = trained.run(batch())
    assert (trained.task.asked, len(result.window_metrics), norms) == (0, 0, {})  # type: ignore[attr-defined]
    result, norms = trained.run(batch(), measure=True)
    assert trained.task.asked == 4  # type: ignore[attr-defined]
    assert result.window_metrics.shape == result.window_losses.shape == (4,)
    assert norms["gradient"] > 0.0


@pytest.mark.parametrize("procedure", ["fptt", "bptt_aux", "tbptt_accumulated"])
def test_micro_batches_of_unequal_sizes_weigh_by_their_sequences(procedure: str) -> None:
    """6 sequences in 4 parts: 1, 2, 1 and 2."""
    whole, parts = loop(procedure), loop(procedure, micro_batches=4)
    one, _ = whole.run(batch(), measure=True)
    other, _ = parts.run(batch(), measure=True)
    torch.testing.assert_close(other.window_losses, one.window_losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.window_metrics, one.window_metrics, rtol=1e-4, atol=1e-5)
    assert not one.window_losses.requires_grad
    assert not other.window_losses.requires_grad
