"""A sweep whose driver, or one of whose runs, is ended by a signal: with --resume it ends as if nothing had been."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.launchers.sweep import STATE, make_plan
from fptt_dist.launchers.tune import sweep
from fptt_dist.reporting import read_sweep
from tests.ray_sweeps.helpers import Ray, assert_same_sweep, note, states, sweep_file, trained
from tests.ray_sweeps.processes import end, environment, gone, holding, marked, words
from tests.training.helpers import assert_same_run

BATCHES = 90
RATES = [0.01, 0.02, 0.03, 0.04]


@pytest.fixture(scope="module")
def undisturbed(shared: Ray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep's file, and the folder of what it gives."""
    place = tmp_path_factory.mktemp("undisturbed")
    file = sweep_file(place, {"optimizer.lr": {"grid": RATES}}, batches=BATCHES)
    assert states(shared.sweep(file, place / "out")[0]) == ["finished"] * 4
    return file, place / "out"


def test_the_driver_is_killed(own: Ray, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """All that it started ends too, and nothing that it did is lost or done wrong."""
    file, whole = undisturbed
    folder = tmp_path / "out"
    command = ["sweep", str(file), f"run.dir={folder}"]
    with own.program(tmp_path / "log", *command) as (program, mark):
        program.wait_until(trained(folder / "002", 30))
        assert len(marked(mark)) > 4
        (left,) = _private_folders(mark)
        os.kill(program.process.pid, signal.SIGKILL)
        # Two idle helpers of Ray's may wait up to a minute to tell someone who is gone too.
        assert gone(mark, 30.0, but=("ray::DashboardAgent", "ray::RuntimeEnvAgent"))
        end(mark)
    shutil.rmtree(left)  # which nobody was left to do
    assert "finished" not in states(read_sweep(folder))[2:]

    plan = make_plan(file, [f"run.dir={folder}"])
    with pytest.raises(ConfigError, match="holds a sweep already: type --resume"):
        sweep(plan)
    other = sweep_file(tmp_path / "other", {"optimizer.lr": {"grid": [0.01, 0.02]}}, batches=BATCHES)
    with pytest.raises(ConfigError, match="holds another sweep"):
        sweep(make_plan(other, [f"run.dir={folder}"]), resume=True)

    with own.program(tmp_path / "log", *command, "--resume") as (program, mark):
        program.wait_until(lambda: bool(_private_folders(mark)))
        private = _private_folders(mark)
        assert program.end() == 0, program.text()
        assert gone(mark, 10.0)
    assert len(private) == 1
    assert not private.pop().exists()
    assert_same_sweep(whole, folder)


def test_signals(shared: Ray, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM while it goes on, and then the same job of SLURM's once more."""
    file, whole = undisturbed
    folder = tmp_path / "out"
    command = ["sweep", str(file), f"run.dir={folder}"]
    for number, code, run, more in ((signal.SIGINT, 130, "001", []), (signal.SIGTERM, 143, "002", ["--resume"])):
        with shared.program(tmp_path / "log", *command, *more) as (program, _):
            program.wait_until(trained(folder / run, 15))
            program.process.send_signal(number)
            assert program.end() == code, program.text()
        again = f"fptt-dist sweep {file} run.dir={folder} --resume"
        assert f"runs, saved in {folder}\nresume with: {again}\n" in program.text()
        assert "Traceback" not in program.text()
        assert "not finished" in states(read_sweep(folder))
    _, printed = shared.sweep(file, folder, SLURM_RESTART_COUNT="1")
    assert printed.startswith("--resume: SLURM started this job again\n")
    assert_same_sweep(whole, folder)


def test_the_terminal_is_gone(own: Ray, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """SIGHUP goes to the sweep and to all that it started, twice, and to the trials' processes too."""
    file, whole = undisturbed
    folder = tmp_path / "out"
    command = ["sweep", str(file), f"run.dir={folder}"]
    with own.program(tmp_path / "log", *command) as (program, mark):
        program.wait_until(trained(folder / "001", 15))
        others = marked(mark) - {program.process.pid}
        assert len(others) > 4
        for process in others:
            os.kill(process, signal.SIGHUP)
        time.sleep(1.0)
        assert others <= marked(mark)
        for _ in range(2):
            os.killpg(program.process.pid, signal.SIGHUP)
        assert program.end() == 129, program.text()
        assert gone(mark, 30.0)
    assert f"runs, saved in {folder}\nresume with: " in program.text()
    assert "Traceback" not in program.text()
    own.sweep(file, folder, "--resume")
    assert_same_sweep(whole, folder)


def test_without_resume_the_command_is_refused(undisturbed: tuple[Path, Path], own: Ray, tmp_path: Path) -> None:
    file, whole = undisturbed
    before = (whole / "sweep.json").stat().st_mtime_ns
    with own.program(tmp_path / "log", "sweep", str(file), f"run.dir={whole}") as (program, _):
        assert program.end() == 2
    assert program.text().startswith(f"fptt-dist: run.dir={whole} holds a sweep already: type --resume")
    assert (whole / "sweep.json").stat().st_mtime_ns == before


def test_runs_that_fail(shared: Ray, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """One that is killed once goes on; one that is killed each time has failed, and so has one that is not finite."""
    _, whole = undisturbed
    file = sweep_file(tmp_path, {"optimizer.lr": {"grid": [*RATES, 1e30]}}, batches=BATCHES, retries=1)
    folder = tmp_path / "out"
    with _killing(shared, {folder / "001": 1, folder / "003": 9}) as killed:
        results, printed = shared.sweep(file, folder)
    assert states(results) == ["finished", "finished", "finished", "failed", "failed"]
    assert killed == {folder / "001": 1, folder / "003": 2}
    for name in ("000", "001", "002"):
        assert_same_run(folder / name, whole / name)

    message = note(folder / "003")["message"]
    assert message.startswith("its process was lost, 1 restarts included: ")
    assert message.endswith("(see ray/003/error.txt)")
    assert results.trials[3].message == message
    assert f"  003  optimizer.lr=0.04: failed: {message}\n" in printed

    message = results.trials[4].message
    assert "is not finite" in message
    assert "Lower optimizer.lr (now 1e+30)" in message
    assert f"  004  optimizer.lr=1e+30: failed: {message}\n" in printed
    # Ray Tune knows no error for good: the restart that is left to it ends before anything is trained.
    text = (folder / STATE / "004" / "error.txt").read_text()
    assert (text.count("Failure # "), text.count("trainer.NonFiniteError: ")) == (2, 1)


@contextmanager
def _killing(ray: Ray, wanted: dict[Path, int]) -> Iterator[dict[Path, int]]:
    """Kill the processes of these runs, each so often, a few batches after they have started; how often it was done."""
    done = dict.fromkeys(wanted, 0)
    ended: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for run, times in wanted.items():
                if done[run] < times and trained(run, 15)():
                    for process in holding(run / "metrics.jsonl", ray.mark) - ended:
                        with suppress(ProcessLookupError):
                            os.kill(process, signal.SIGKILL)
                        ended.add(process)
                        done[run] += 1
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def _private_folders(mark: str) -> set[Path]:
    """The folders of the program's own Ray."""
    found = set()
    for process in marked(mark):
        if any("gcs_server" in word for word in words(process)[:1]):
            found.add(Path(environment(process)["RAY_AUTH_TOKEN_PATH"]).parent)
    return found
