"""`fptt-dist submit --local`: real jobs of submitit's on this machine."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launchers.test_local import batches, small
from tests.program import Program

ROOT = Path(__file__).parents[2]


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def submit(log: Path, *words: str) -> int:
    """`fptt-dist submit … --local`: its exit code."""
    command = ["-m", "fptt_dist", "submit", *words, "--local"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return Program(log, command, environment, folder=Path.cwd(), forked=True).end()


def submitted(log: Path, *words: str) -> tuple[int, dict[str, str]]:
    """The process id of the job, and the rows that `fptt-dist submit … --local` printed."""
    assert submit(log, *words) == 0, log.read_text()
    rows = dict(line.split(maxsplit=1) for line in log.read_text().splitlines())
    return int(rows["process"]), rows


def wait_for(reached: Callable[[], bool], pid: int, log: Path, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if not alive(pid) or time.monotonic() > deadline:
            assert reached(), log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_of_this_machine(place: Path, tmp_path: Path) -> None:
    (place / "elsewhere").mkdir()
    pid, rows = submitted(tmp_path / "printed", *small(Path("elsewhere/a run")), "--tasks-per-node", "2")
    run = place / "elsewhere" / "a run"
    log = run / "slurm" / f"{pid}_0_log.out"
    wait_for(lambda: not alive(pid), pid, log)
    assert json.loads((run / "result.json").read_text())["workers"] == 2, log.read_text()
    assert json.loads((run / "job.json").read_text()) == {"job": f"process {pid}", "log": str(log)}
    assert (rows["run"], rows["log"]) == (str(run), str(log))
    assert rows["follow"] == f"tail -n +1 -F '{log}'"
    assert rows["state"] == f"fptt-dist jobs {run.parent}"
    assert rows["cancel"] == f"kill {pid}"
    assert rows["resume"].startswith("fptt-dist submit add_task ")
    assert rows["resume"].endswith(" --tasks-per-node 2 --local resume=auto")
    assert log.read_text().count("adding fptt: test mse ") == 1
    other = (run / "slurm" / f"{pid}_1_log.out").read_text()
    assert "rank 1 of 2, local rank 1" in other
    assert "Traceback" not in log.read_text() + other


@pytest.mark.slow
def test_a_mistake_that_only_the_job_can_see(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    pid, _ = submitted(tmp_path / "printed", *small(run, device="cuda"), "--tasks-per-node", "2")
    logs = [run / "slurm" / f"{pid}_{task}_log.out" for task in range(2)]
    wait_for(lambda: not alive(pid), pid, logs[0])
    for log, rank in zip(logs, ("", "[rank 1] "), strict=True):
        (said,) = [line for line in log.read_text().splitlines() if "submitit INFO" not in line]
        assert said.startswith(f"fptt-dist: {rank}device=cuda, but torch finds no usable GPU: type device=cpu")
    assert {path.name for path in run.iterdir()} == {"job.json", "slurm"}


@pytest.mark.slow
def test_a_job_goes_on_after_its_signal_and_its_cancel_command_ends_it(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    pid, rows = submitted(tmp_path / "printed", *small(run, train__max_batches="100000"), "--time", "5")
    log = run / "slurm" / f"{pid}_0_log.out"
    try:
        wait_for(lambda: len(batches(run)) > 3, pid, log)
        (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGUSR2)
        wait_for(lambda: "resumed from " in log.read_text(), pid, log)
        at = max(batches(run))
        wait_for(lambda: max(batches(run)) > at, pid, log)
        assert rows["cancel"] == f"kill {pid}"
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not alive(pid), pid, log)
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    done = batches(run)
    assert done == list(range(1, len(done) + 1))
    assert log.read_text().count("stopped by a signal after batch ") == 2
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_job_outlives_its_terminal_and_ends_with_its_controller(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    words = [*small(run, train__max_batches="100000", evaluate__every_batches="100000"), "--tasks-per-node", "2"]
    pid, _ = submitted(tmp_path / "printed", *words)
    log = run / "slurm" / f"{pid}_0_log.out"
    tasks: list[int] = []
    try:
        wait_for(lambda: len(batches(run)) > 3, pid, log)
        tasks = [int(task) for task in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        for each in (pid, *tasks):
            os.kill(each, signal.SIGHUP)
        at = max(batches(run))
        wait_for(lambda: max(batches(run)) > at + 5, pid, log)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(map(alive, tasks)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (len(tasks), any(map(alive, tasks))) == (2, False), log.read_text()
    finally:
        for each in filter(alive, (pid, *tasks)):
            os.kill(each, signal.SIGKILL)
    newest = max(batches(run))
    assert f"stopped by a signal after batch {newest} of 100000, saved in " in log.read_text()
    assert (run / "checkpoints" / f"step-{newest:08d}").is_dir()


@pytest.mark.slow
def test_an_array_is_not_started_all_at_once(place: Path, tmp_path: Path) -> None:
    (place / "sweep.yaml").write_text("config: add_task\nspace:\n  fptt.alpha: {grid: [0.1, 0.3]}\n")
    assert submit(tmp_path / "printed", "sweep.yaml", "--array") == 2
    message = "fptt-dist: --array with --local: all runs would start at once; leave out one of the two\n"
    assert (tmp_path / "printed").read_text() == message
    assert [path.name for path in place.iterdir()] == ["sweep.yaml"]


@pytest.mark.slow
def test_a_job_that_went_back_often_enough(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    (place / "site.yaml").write_text("requeues: 0\n")
    words = [*small(run, train__max_batches="100000"), "--time", "5", "--cluster", "site.yaml"]
    pid, rows = submitted(tmp_path / "printed", *words)
    log = run / "slurm" / f"{pid}_0_log.out"
    wait_for(lambda: len(batches(run)) > 3, pid, log)
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGUSR2)
    wait_for(lambda: not alive(pid), pid, log)
    assert "Job not requeued because: timed-out too many times." in log.read_text()
    assert "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1] == f"resume with: {rows['resume']}"
    assert rows["resume"].endswith(" --time 5 --cluster site.yaml --local resume=auto")
