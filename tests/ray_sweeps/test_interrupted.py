"""A sweep whose driver, or one of whose runs, is ended by a signal: with --resume it ends as if nothing had been."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.launchers.ray.tune import sweep
from fptt_dist.launchers.sweeps.plan import STATE, make_plan
from fptt_dist.reporting import read_sweep
from tests.ray_sweeps.helpers import Ray, assert_same_sweep, note, states, sweep_file, trained
from tests.ray_sweeps.processes import end, environment, gone, holding, marked, words
from tests.training.helpers import assert_same_run

BATCHES = 90
RATES = [0.01, 0.02, 0.03]


@pytest.fixture(scope="module")
def undisturbed(shared: Ray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep's file, and the folder of what it gives."""
    place = tmp_path_factory.mktemp("undisturbed")
    file = sweep_file(place, {"optimizer.lr": {"grid": RATES}}, batches=BATCHES)
    assert states(shared.sweep(file, place / "out")[0]) == ["finished"] * 3
    return file, place / "out"


@pytest.mark.timeout(600)
def test_interrupted_again_and_again(own: Ray, shared: Ray, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """One sweep that a hangup, a kill, Ctrl-C and SIGTERM end in turn: nothing is lost, done wrong, or left running."""
    file, whole = undisturbed
    folder, log = tmp_path / "out", tmp_path / "log"
    command = ["sweep", str(file), f"run.dir={folder}"]

    def assert_stopped(text: str) -> None:
        again = f"fptt-dist sweep {file} run.dir={folder} --resume"
        assert f"runs, saved in {folder}\nresume with: {again}\n" in text
        assert "Traceback" not in text
        assert "not finished" in states(read_sweep(folder))

    # The terminal is gone: SIGHUP goes to all that it started, the trials' processes too, and twice to the sweep.
    with own.program(log, *command) as (program, mark):
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
    assert_stopped(program.text())

    # The driver is killed, and all that it started ends too.
    with own.program(log, *command, "--resume") as (program, mark):
        program.wait_until(_trains_on(folder))
        (left,) = _private_folders(mark)
        os.kill(program.process.pid, signal.SIGKILL)
        # Two idle helpers of Ray's may wait up to a minute to tell someone who is gone too.
        assert gone(mark, 30.0, but=("ray::DashboardAgent", "ray::RuntimeEnvAgent"))
        end(mark)
    shutil.rmtree(left)  # which nobody was left to do
    assert "finished" not in states(read_sweep(folder))[2:]

    before = (folder / "sweep.json").stat().st_mtime_ns
    plan = make_plan(file, [f"run.dir={folder}"])
    with pytest.raises(ConfigError, match="holds a sweep already: type --resume"):
        sweep(plan)
    assert (folder / "sweep.json").stat().st_mtime_ns == before
    other = sweep_file(tmp_path / "other", {"optimizer.lr": {"grid": [0.01, 0.02]}}, batches=BATCHES)
    with pytest.raises(ConfigError, match="holds another sweep"):
        sweep(make_plan(other, [f"run.dir={folder}"]), resume=True)

    for ray, number, code in ((own, signal.SIGINT, 130), (shared, signal.SIGTERM, 143)):
        with ray.program(log, *command, "--resume") as (program, mark):
            program.wait_until(_trains_on(folder))
            private = _private_folders(mark)
            program.process.send_signal(number)
            assert program.end() == code, program.text()
            assert gone(mark, 10.0)
        assert len(private) == (ray is own)
        assert not [path for path in private if path.exists()]
        assert_stopped(program.text())

    _, printed = shared.sweep(file, folder, SLURM_RESTART_COUNT="1")
    assert printed.startswith("--resume: SLURM started this job again\n")
    assert_same_sweep(whole, folder)


def test_runs_that_fail(shared: Ray, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """One that is killed once resumes; one that is killed each time has failed, and so has one that is not finite."""
    _, whole = undisturbed
    file = sweep_file(tmp_path, {"optimizer.lr": {"grid": [*RATES, 1e30]}}, batches=BATCHES, max_failures=1)
    folder = tmp_path / "out"
    with _killing(shared, {folder / "001": 1, folder / "002": 9}) as killed:
        results, printed = shared.sweep(file, folder)
    assert states(results) == ["finished", "finished", "failed", "failed"]
    assert killed == {folder / "001": 1, folder / "002": 2}
    for name in ("000", "001"):
        assert_same_run(folder / name, whole / name)

    message = note(folder / "002")["message"]
    assert message.startswith("its process was lost, 1 restarts included: ")
    assert message.endswith("(see ray/002/error.txt)")
    assert results.trials[2].message == message
    assert f"  002  optimizer.lr=0.03: failed: {message}\n" in printed

    message = results.trials[3].message
    assert "is not finite" in message
    assert "Lower optimizer.lr (now 1e+30)" in message
    assert f"  003  optimizer.lr=1e+30: failed: {message}\n" in printed
    # Ray Tune knows no error for good: the restart that is left to it ends before anything is trained.
    text = (folder / STATE / "003" / "error.txt").read_text()
    assert (text.count("Failure # "), text.count("non_finite.NonFiniteError: ")) == (2, 1)


def _trains_on(sweep: Path) -> Callable[[], bool]:
    """Tell whether any of the sweep's runs was validated since now: how far they had come by a signal is luck."""

    def validations() -> int:
        return sum(file.read_text().count('"kind": "evaluation"') for file in sweep.glob("*/metrics.jsonl"))

    before = validations()
    return lambda: validations() > before


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
