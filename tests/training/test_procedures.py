"""FPTT's baselines against loops written by hand in plain torch, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.tasks import Adding
from fptt_dist.training.run import train
from fptt_dist.training.setup import task_factory
from tests.training.helpers import checkpoints, content, records, tiny
from tests.training.toys import Stream

BATCHES, SIZE, LENGTH, HIDDEN, WINDOWS = 7, 4, 12, 4, 3
EDGES = [(0, 4), (4, 8), (8, 12)]
Step = Callable[[nn.Module, nn.Module, Tensor, Tensor, Callable[[], float]], list[float]]


class Log:
    """What the hand-written loop saw: the windows' losses of each batch, and the norm at its last update."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.norms: list[float] = []


def by_hand(step: Step, *, max_norm: float, inputs: int = 2, outputs: int = 1, stream: bool = False) -> tuple[Any, Log]:
    """Adam, gradient clipping and nothing else, on the batches that the run sees."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    layer, readout = nn.LSTM(inputs, HIDDEN), nn.Linear(HIDDEN, outputs)
    parameters = [*layer.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2, foreach=True)
    task = Stream(carries_state=False) if stream else Adding(length=LENGTH, examples=20, seed=0)
    log = Log()

    def update() -> float:
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)

    for number in range(BATCHES):
        batch = task.train_batch(number // 5, number % 5 * SIZE, SIZE, slice(0, SIZE))
        *losses, norm = step(layer, readout, batch.inputs, batch.targets, update)
        log.losses.append(losses)
        log.norms.append(norm)
    weights = {f"recurrent.{name}": p for name, p in layer.named_parameters()}
    return {**weights, **{f"readout.{name}": p for name, p in readout.named_parameters()}}, log


def bptt(layer: nn.Module, readout: nn.Module, x: Tensor, y: Tensor, update: Callable[[], float]) -> list[float]:
    hidden, _ = layer(x)
    loss = functional.mse_loss(readout(hidden[-1:])[-1], y)
    loss.backward()
    return [loss.item(), update()]


def bptt_aux(layer: nn.Module, readout: nn.Module, x: Tensor, y: Tensor, update: Callable[[], float]) -> list[float]:
    state, losses = None, []
    for k, (start, stop) in enumerate(EDGES, 1):
        hidden, state = layer(x[start:stop], state)
        losses.append(k / WINDOWS * functional.mse_loss(readout(hidden[-1:])[-1], y))
    (torch.stack(losses) * (1 / WINDOWS)).sum().backward()
    return [*(loss.item() for loss in losses), update()]


def tbptt_accumulated(
    layer: nn.Module, readout: nn.Module, x: Tensor, y: Tensor, update: Callable[[], float]
) -> list[float]:
    state, losses = None, []
    for k, (start, stop) in enumerate(EDGES, 1):
        hidden, state = layer(x[start:stop], state)
        state = tuple(part.detach() for part in state)
        losses.append(k / WINDOWS * functional.mse_loss(readout(hidden[-1:])[-1], y))
    losses[-1].backward()
    return [*(loss.item() for loss in losses), update()]


def tbptt(layer: nn.Module, readout: nn.Module, x: Tensor, y: Tensor, update: Callable[[], float]) -> list[float]:
    state, losses, norm = None, [], 0.0
    for k, (start, stop) in enumerate(EDGES, 1):
        hidden, state = layer(x[start:stop], state)
        state = tuple(part.detach() for part in state)
        loss = k / WINDOWS * functional.mse_loss(readout(hidden[-1:])[-1], y)
        loss.backward()
        norm = update()
        losses.append(loss.item())
    return [*losses, norm]


def tbptt_accumulated_of_a_stream(
    layer: nn.Module, readout: nn.Module, x: Tensor, y: Tensor, update: Callable[[], float]
) -> list[float]:
    state, losses = None, []
    for start, stop in EDGES:
        hidden, state = layer(x[start:stop], state)
        state = tuple(part.detach() for part in state)
        loss = functional.cross_entropy(readout(hidden).flatten(0, 1), y[start:stop].flatten())
        ((stop - start) / LENGTH * loss).backward()
        losses.append(loss.item())
    return [*losses, update()]


def assert_run_is(run: Path, weights: dict[str, Tensor], log: Log) -> None:
    saved = content(checkpoints(run)[-1])
    for name, weight in weights.items():
        assert torch.equal(saved[f"model.safetensors:{name}"], weight.detach()), name
    lines = records(run, "train")
    assert [line["window_losses"] for line in lines] == log.losses
    assert [line["loss"] for line in lines] == [sum(losses) / len(losses) for losses in log.losses]
    assert [line["gradient_norm"] for line in lines] == pytest.approx(log.norms, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "max_norm"),
    [(bptt, 1.0), (bptt, 1e9), (bptt_aux, 0.05), (tbptt_accumulated, 1e9), (tbptt, 1.0), (tbptt, 0.05)],
)
def test_is_the_loop_written_by_hand(step: Step, max_norm: float, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", {"algorithm": step.__name__, "train.max_norm": max_norm}, batches=BATCHES))
    assert_run_is(tmp_path / "run", *by_hand(step, max_norm=max_norm))


def test_clipping_makes_a_difference() -> None:
    loose, tight = (by_hand(bptt, max_norm=norm)[0]["recurrent.weight_hh_l0"] for norm in (1e9, 1.0))
    assert not torch.equal(loose, tight)


def test_tbptt_accumulated_of_sequences_weighs_windows_by_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_factory, "build_task", lambda config: Stream(carries_state=False))
    train(tiny(tmp_path / "run", {"algorithm": "tbptt_accumulated"}, batches=BATCHES))
    assert_run_is(
        tmp_path / "run", *by_hand(tbptt_accumulated_of_a_stream, max_norm=1.0, inputs=3, outputs=3, stream=True)
    )


def model_tensors(run: Path) -> dict[str, Tensor]:
    return {k: v for k, v in content(checkpoints(run)[-1]).items() if k.startswith("model.")}


def assert_equal_weights(one: Path, other: Path) -> None:
    left, right = model_tensors(one), model_tensors(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_fptt_without_force_is_tbptt(tmp_path: Path) -> None:
    train(tiny(tmp_path / "fptt", {"fptt.alpha": 0.0}, batches=BATCHES))
    train(tiny(tmp_path / "tbptt", {"algorithm": "tbptt"}, batches=BATCHES))
    assert_equal_weights(tmp_path / "fptt", tmp_path / "tbptt")


def test_fptt_without_force_and_with_one_window_is_bptt(tmp_path: Path) -> None:
    train(tiny(tmp_path / "fptt", {"fptt.alpha": 0.0, "fptt.windows": 1}, batches=BATCHES))
    train(tiny(tmp_path / "bptt", {"algorithm": "bptt"}, batches=BATCHES))
    assert_equal_weights(tmp_path / "fptt", tmp_path / "bptt")


def test_a_length_of_the_windows_is_their_number(tmp_path: Path) -> None:
    length = {"fptt.windows": None, "fptt.window_length": LENGTH // WINDOWS}
    train(tiny(tmp_path / "windows", batches=BATCHES))
    train(tiny(tmp_path / "length", length, batches=BATCHES))
    train(tiny(tmp_path / "append", {**length, "fptt.window_remainder": "append"}, batches=BATCHES))
    assert_equal_weights(tmp_path / "length", tmp_path / "windows")
    assert_equal_weights(tmp_path / "append", tmp_path / "windows")


def test_fptt_with_force_is_not_tbptt(tmp_path: Path) -> None:
    train(tiny(tmp_path / "fptt", batches=BATCHES))
    train(tiny(tmp_path / "tbptt", {"algorithm": "tbptt"}, batches=BATCHES))
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "fptt", tmp_path / "tbptt")
