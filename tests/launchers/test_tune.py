"""A sweep resumes from Ray Tune's state only if nobody else could have written it."""

import logging
import os
import pickle
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.launchers.ray import tune
from fptt_dist.launchers.ray.tune import _create_state, _own_state, _refuse_moved, _stopped_by_signal, sweep
from fptt_dist.launchers.sweeps.directory import create_folder, note_trial
from fptt_dist.launchers.sweeps.plan import STATE, SweepPlan, make_plan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user: needs root")
OTHER = 54321  # nobody on this machine


class Marks:
    """Unpickled, it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.fixture
def plan(here: Path) -> SweepPlan:
    """Of a sweep that began and can be resumed."""
    (here / "sweep.yaml").write_text("config: add_task\nspace:\n  fptt.alpha: {grid: [0.1, 0.3]}\n")
    plan = make_plan(here / "sweep.yaml", ["run.dir=out"])
    create_folder(plan)
    return plan


@pytest.mark.parametrize("name", ["tuner.pkl", "searcher-state-1.pkl", "001/error.pkl"])
def test_a_replaced_file_does_not_run(name: str, plan: SweepPlan, tmp_path: Path) -> None:
    state, ran = plan.folder / STATE, tmp_path / "ran"
    (state / name).parent.mkdir(parents=True)
    (state / "tuner.pkl").touch()
    (state / name).write_bytes(pickle.dumps(Marks(ran)))
    pickle.loads((state / name).read_bytes())
    ran.unlink()
    before = {path: path.lstat().st_mtime_ns for path in plan.folder.rglob("*")}
    os.chown(state / name, OTHER, OTHER)
    with pytest.raises(ConfigError) as caught:
        sweep(plan, resume=True)
    assert str(caught.value) == (
        f"run.dir={plan.folder}: Ray Tune unpickles its state, which runs what a file holds, and {state / name} "
        f"belongs to user {OTHER}: type run.dir=… for a new sweep"
    )
    os.chown(state / name, 0, 0)
    (state / name).chmod(0o646)
    with pytest.raises(
        ConfigError, match=rf"/{name} is writable by everybody \(mode 0646\): .* chmod -R go-w {state}, "
    ):
        sweep(plan, resume=True)
    assert not ran.exists()
    assert {path: path.lstat().st_mtime_ns for path in plan.folder.rglob("*")} == before
    (state / name).chmod(0o644)
    assert _own_state(plan) == state


def test_a_folder_that_others_may_put_in_its_place(
    plan: SweepPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one moved there is theirs; one that was ours, and holds what we trust less, must not get there either."""
    state = plan.folder / STATE
    with caplog.at_level(logging.WARNING, "fptt_dist"):
        _create_state(plan, _own_state(plan))
    assert caplog.messages == []
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    plan.folder.chmod(0o777)
    with pytest.raises(
        ConfigError, match=rf"out is writable by everybody \(mode 0777\): type chmod o-w {plan.folder}, or "
    ):
        sweep(plan, resume=True)
    shutil.rmtree(state)
    with caplog.at_level(logging.WARNING, "fptt_dist"):  # a new sweep may be there, and is told at once
        _create_state(plan, _own_state(plan))
    assert caplog.messages == [
        f"run.dir={plan.folder}: --resume will not continue this sweep: {plan.folder} is writable by everybody "
        f"(mode 0777): type chmod o-w {plan.folder}, or run.dir=… in another place"
    ]
    plan.folder.chmod(0o755)
    shutil.rmtree(state)
    state.symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    assert _own_state(plan) == tmp_path / "theirs"  # a link of ours is followed once, and what it leads to is looked at
    os.chown(tmp_path / "theirs", OTHER, OTHER)
    with pytest.raises(ConfigError, match=f"/theirs belongs to user {OTHER}: type run"):
        sweep(plan, resume=True)


def test_a_sweep_that_was_moved_is_refused(plan: SweepPlan, tmp_path: Path) -> None:
    """Ray Tune's state would lead its runs back to the old place."""
    _create_state(plan, _own_state(plan))
    (plan.folder / STATE / "tuner.pkl").touch()
    new = plan.folder.rename(tmp_path / "moved")
    before = sorted(new.rglob("*"))
    moved = replace(plan, folder=new)
    with pytest.raises(ConfigError) as caught:
        sweep(moved, resume=True)
    assert str(caught.value) == (
        f"--resume: run.dir={new} was {plan.folder} when the sweep began, which Ray Tune's state still names: move it "
        f"back there, or link the old place to the new one, ln -s {new} {plan.folder}"
    )
    assert (sorted(new.rglob("*")), plan.folder.exists()) == (before, False)
    plan.folder.symlink_to(new)
    for either in (plan, moved):
        _refuse_moved(either, _own_state(either))


def test_a_signal_is_named_only_if_one_came(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    with _stopped_by_signal() as got:
        signal.signal(signal.SIGINT, lambda *_: None)  # as Ray Tune does
    assert got == []
    with _stopped_by_signal() as got:
        pass  # Ray Tune puts back what was there once it has seen a signal
    assert got == [signal.SIGINT]

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    monkeypatch.setattr(tune, "connected", nothing)
    monkeypatch.setattr(tune, "_need", lambda plan: None)
    monkeypatch.setattr(tune, "room", lambda need: 1)
    monkeypatch.setattr(tune, "_fit", lambda *_, **__: None)
    note_trial(plan.folder / "000", {"index": 0, "overrides": {}, "message": "its process was lost"})
    with pytest.raises(
        OSError, match=r"ended after 0 of 3 runs, and no signal came \(run 000: its process was lost\): "
    ):
        sweep(plan, resume=True)
