"""A batch captured and replayed is the batch itself, on a recorder that does on a CPU what a CUDA graph does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt_dist.algorithm.fused import kernel
from fptt_dist.config import Config
from fptt_dist.models import hidden_of
from fptt_dist.parallel import Replicated
from fptt_dist.training import cuda_graph as graph
from fptt_dist.training.cuda_graph import FIRST, BatchGraph
from tests.parallel.toys import single_worker, told

from .helpers import tiny, trainer_for
from .recorder import NotCapturableError, Recorder
from .texts import AWD, tiny_text

COMPILED = {"train.compile_update": True}
Run = dict[str, Any]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own operations one by one: a recorder does not see into compiled code."""

    def as_it_is(function: Callable[..., Any], tensors: list[Tensor]) -> Callable[..., Any]:
        return function

    monkeypatch.setattr(kernel, "_compiled", as_it_is)


def train(
    folder: Path,
    overrides: Run,
    *,
    captured: bool,
    batches: int = 9,
    measured: tuple[int, ...] = (),
    kind: Callable[..., Config] = tiny,
) -> Run:
    """Some batches; everything that they changed, and what each of them said."""
    trainer = trainer_for(kind(folder, {**COMPILED, **overrides}))
    recorder = Recorder()
    runner = BatchGraph(trainer.loop, recorder) if captured else trainer.loop
    said, states = [], None
    torch.manual_seed(3)
    for number in range(batches):
        for group in trainer.optimizer.param_groups:
            group["lr"], group["alpha"] = 0.02 / (1 + number), 0.1 * (1 + number)
        epoch, cursor = divmod(4 * number, trainer.task.train_examples)
        batch = trainer.task.train_batch(epoch, cursor, 4, slice(0, 4))
        result, norms = runner.run(batch, states, measure=number in measured)
        assert told(trainer.engine).all_finite()
        assert bool(norms) == (number in measured)
        if trainer.task.stateful:
            states = [hidden_of(state) for state in result.states]
        said.append(result.window_losses.clone())
    tensors = {name: t.clone() for name, t in trainer.network.state_dict().items()}
    for p, name in ((p, n) for n, p in trainer.network.named_parameters()):
        for key, value in trainer.optimizer.state[p].items():  # r is a plain number
            own = value.clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            tensors[f"{name}/{key}"] = own
    tensors |= {f"estimate/{key}": value for key, value in trainer.task.loss.state_dict().items()}
    assert trainer.engine.control.updates == batches * trainer.loop.updates
    return {"losses": said, "tensors": tensors, "recorder": recorder, "runner": runner}


def same(left: Run, right: Run) -> None:
    for one, other in zip(left["losses"], right["losses"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert left["tensors"].keys() == right["tensors"].keys()
    for name, tensor in left["tensors"].items():
        torch.testing.assert_close(tensor, right["tensors"][name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"algorithm": "tbptt", "optimizer": {"name": "sgd", "momentum": 0.9}, "parallel.strategy": "data_parallel"},
        {"algorithm": "bptt", "model.layer": "antisymmetric"},
        {"algorithm": "tbptt_accumulated", "train.micro_batch_size": 2},
        {"algorithm": "bptt_aux", "model.layer": "gru", "model.layers": 2},
        {"train.max_norm": None, "fptt.metric": "preconditioned", "optimizer.name": "adamw"},
    ],
    ids=str,
)
def test_replayed_is_the_batch_itself(tmp_path: Path, overrides: Run) -> None:
    """Losses, weights, moments, W̄, u, r and counts at tolerance 0, with a learning rate and α that change."""
    ends = [train(tmp_path / str(captured), overrides, captured=captured) for captured in (True, False)]
    same(*ends)
    assert ends[0]["runner"].captured
    assert ends[0]["recorder"].warm_ups == FIRST


def test_a_batch_that_is_measured_runs_as_it_is(tmp_path: Path) -> None:
    ends = [train(tmp_path / str(c), {}, captured=c, measured=(1, 5, 6)) for c in (True, False)]
    same(*ends)
    assert ends[0]["recorder"].warm_ups == FIRST + 2


def test_dropout_is_drawn_anew_at_each_replay(tmp_path: Path) -> None:
    ends = [
        train(tmp_path / str(c), {"model.layers": 2, "model.dropout": 0.5, "model.layer": "gru"}, captured=c)
        for c in (True, False)
    ]
    same(*ends)


def test_a_stream_goes_on_from_batch_to_batch(tmp_path: Path) -> None:
    ends = [train(tmp_path / str(c), AWD, captured=c, kind=tiny_text) for c in (True, False)]
    same(*ends)
    assert ends[0]["runner"].captured


def test_what_cannot_be_captured_runs_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read on the host in the middle of a window: one warning with the reason, and the same run."""

    def reading(loop: Any) -> None:
        forward = loop.model.forward

        def looks(*args: Any) -> Any:
            output, state = forward(*args)
            assert float(output.detach().sum()) < 1e9
            return output, state

        loop.model.forward = looks

    ends = []
    for captured in (True, False):
        trainer = trainer_for(tiny(tmp_path / str(captured), COMPILED))
        reading(trainer.loop)
        runner = BatchGraph(trainer.loop, Recorder()) if captured else trainer.loop
        for number in range(7):
            runner.run(trainer.task.train_batch(0, 4 * number % 20, 4, slice(0, 4)))
        assert trainer.engine.control.updates == 7 * trainer.loop.updates
        ends.append({name: t.clone() for name, t in trainer.network.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    messages = [r.getMessage() for r in caplog.records if r.name == "fptt_dist"]
    assert len(messages) == 1
    assert NotCapturableError.__name__ in messages[0]
    assert "_local_scalar_dense" in messages[0]


def test_without_a_gpu_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_for(tiny(tmp_path, {**COMPILED, "train.cuda_graph": True}))
    assert trainer.runner is trainer.loop
    assert "train.cuda_graph=true has no effect: a graph is CUDA's, and the device is cpu" in caplog.text


def test_who_can_be_captured(tmp_path: Path) -> None:
    trainer = trainer_for(tiny(tmp_path))
    assert graph.refusal(single_worker(), torch.device("cuda")) is None
    trainer.engine.placement.__class__ = type("Elsewhere", (Replicated,), {})
    assert "Elsewhere NoSync reads values" in str(graph.refusal(trainer.engine, torch.device("cuda")))
