"""Callbacks: what they are told, that they change nothing, and how a run ends by one."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fptt_dist import Callback, fit
from fptt_dist.config import Config, ConfigError
from fptt_dist.training.callbacks import (
    BatchEnd,
    CallbackError,
    RunStart,
    SavedCheckpoint,
    Validation,
)
from fptt_dist.training.checkpoint.store import validate
from fptt_dist.training.logging import wandb_callback
from fptt_dist.training.process.signals import Interrupted
from tests.training.helpers import (
    StopAt,
    assert_same_run,
    checkpoints,
    isolated,
    records,
    resumed,
    tiny,
    trainer_for,
)

DROPOUT: dict[str, Any] = {"model.layers": 2, "model.dropout": 0.5}
OFTEN: dict[str, Any] = {**DROPOUT, "logging.every_batches": 2, "evaluate.every_batches": 3}


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


class Noted(Callback):
    """Notes every call, and draws from all global random streams, which it also seeds."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.valid: list[str | None] = []

    def note(self, name: str, value: Any) -> None:
        torch.manual_seed(len(self.calls))
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        drawn = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        assert drawn[1] < 1.0
        self.calls.append((name, value))

    def on_start(self, event: RunStart) -> None:
        self.note("start", event)

    def on_batch_end(self, event: BatchEnd) -> None:
        self.note("batch", event)

    def on_validation(self, event: Validation) -> None:
        self.note("validation", event)
        event.metrics.clear()  # its own

    def on_checkpoint(self, event: SavedCheckpoint) -> None:
        self.valid.append(validate(event.folder))
        self.note("checkpoint", event)

    def on_end(self, result: Any) -> None:
        self.note("end", result)

    def on_error(self, error: BaseException) -> None:
        self.note("error", error)

    def of(self, name: str) -> list[Any]:
        return [value for call, value in self.calls if call == name]


def fit_until(config: Config, batch: int, callbacks: list[Callback]) -> None:
    """Start a run, and interrupt it after `batch`."""
    torch.set_flush_denormal(True)
    trainer = trainer_for(config, callbacks)
    trainer.fit(StopAt(trainer, batch))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_is_told_all_and_changes_nothing(asynchronous: bool, tmp_path: Path) -> None:
    plain, run, noted = tmp_path / "plain", tmp_path / "run", Noted()
    keys = {**OFTEN, "checkpoint.async_save": asynchronous}
    fit(tiny(plain, keys))
    done = fit(tiny(run, keys), callbacks=[noted, Callback()])
    assert_same_run(plain, run)

    [start] = noted.of("start")
    assert (start.folder, start.run_id, start.config.model.hidden) == (run, done.run_id, 4)
    assert (start.batch, start.total_batches, start.workers) == (0, 10, 1)
    batches, written = noted.of("batch"), records(run, "train")
    assert [(event.batch, event.epoch, event.updates, event.sequences) for event in batches] == [
        (b, b // 5, 3 * b, 4 * b) for b in range(1, 11)
    ]
    assert [event.batch for event in batches if event.record is not None] == [2, 4, 6, 8, 10]
    for event, line in zip([event for event in batches if event.record is not None], written, strict=True):
        assert {"kind": "train", **event.record, "time": line["time"]} == line
        assert event.seconds == line["seconds"]
    evaluations = [line for line in records(run, "evaluation") if line["split"] == "validation"]
    found = noted.of("validation")
    assert [(e.batch, e.metric, e.value, e.is_best) for e in found] == [
        (line["batch"], line["metric"], line["value"], line["best"]) for line in evaluations
    ]
    saved = noted.of("checkpoint")
    assert noted.valid == [None] * len(saved)
    assert [event.batch for event in saved] == sorted({5, 10, *(e.batch for e in found if e.is_best)})
    assert {event.batch for event in saved if event.is_best} == {event.batch for event in found if event.is_best}
    assert noted.of("end") == [done]
    assert noted.of("error") == []
    order = [name for name, value in noted.calls if name != "checkpoint" and getattr(value, "batch", 0) in (0, 3)]
    assert order == ["start", "batch", "validation", "end"]


def test_it_continues_with_a_run_that_resumes_and_ends_by_patience(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    patience = {**OFTEN, "evaluate.every_batches": 1, "train.patience": 2, "optimizer.lr": 1e-9}
    fit(tiny(whole, patience, batches=20))
    first, second, third = Noted(), Noted(), Noted()
    with pytest.raises(Interrupted) as stopped:
        fit_until(tiny(run, patience, batches=20), 1, [first])
    assert first.of("error") == [stopped.value]
    assert [event.batch for event in first.of("checkpoint")] == [1]
    assert first.of("end") == []
    done = fit(resumed(tiny(run, patience, batches=20)), callbacks=[second])
    assert_same_run(whole, run)
    assert done.stopped_early
    [start] = second.of("start")
    assert (start.batch, start.run_id) == (1, first.of("start")[0].run_id)
    assert [event.batch for event in second.of("batch")] == list(range(2, done.batches + 1))
    assert second.of("end") == [done]
    fit(resumed(tiny(run, patience, batches=20)), callbacks=[third])
    assert third.calls == []  # nothing left to do


class Failing(Noted):
    """Raises an error in one method, and another one when it is told of that."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__()
        self.method, self.error = method, error
        setattr(self, method, self.fail)

    def fail(self, event: Any) -> None:
        raise self.error

    def on_error(self, error: BaseException) -> None:
        super().on_error(error)
        raise OSError("not reachable")


class Named(Callback):
    """Fails at the second validation."""

    def on_validation(self, event: Validation) -> None:
        if event.batch == 6:
            raise ValueError("too bad")


def test_a_class_in_place_of_an_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^callbacks: <class '.*Noted'> is no object of a class .*MyCallback\(\)\]$"):
        fit(tiny(tmp_path / "run"), callbacks=[Noted])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_callback, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^logging.wandb=mine: the package wandb is not installed: type pip install"):
        fit(tiny(tmp_path / "run", {"logging.wandb": "mine"}))
    assert not (tmp_path / "run").exists()


def test_its_exception_ends_the_run_which_can_be_resumed(
    subtests: pytest.Subtests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tiny(tmp_path / "whole", OFTEN))
    failure = r"^Named.on_validation raised ValueError: too bad$"
    with pytest.raises(CallbackError, match=failure) as caught:
        fit(tiny(tmp_path / "named", OFTEN), callbacks=[Named()])
    assert caught.value.__cause__ is not None
    assert caught.traceback[-1].name == "_call"
    assert checkpoints(tmp_path / "named")
    fit(resumed(tiny(tmp_path / "named", OFTEN)))
    assert_same_run(tmp_path / "whole", tmp_path / "named")
    errors = {
        "on_start": ValueError("too bad"),
        "on_batch_end": SystemExit(0),
        "on_checkpoint": KeyboardInterrupt(),
        "on_end": ConfigError("too bad"),
    }
    for name, error in errors.items():
        with subtests.test(method=name):
            run, failing, other = tmp_path / name, Failing(name, error), Noted()
            keys = {**OFTEN, "checkpoint.async_save": name == "on_checkpoint"}
            with pytest.raises((CallbackError, KeyboardInterrupt)) as ended:
                fit(tiny(run, keys), callbacks=[failing, other])
            assert (ended.value if isinstance(error, KeyboardInterrupt) else ended.value.__cause__) is error
            assert other.of("error") == failing.of("error") == [ended.value]
            assert "Failing.on_error: OSError: not reachable" in caplog.text
            assert (run / "result.json").exists() is (name == "on_end")
            fit(resumed(tiny(run, OFTEN)))
            assert_same_run(tmp_path / "whole", run)
