"""SIGUSR2 in a SLURM job: the job goes back into the queue, after saving, and resumes bit for bit.

There is no SLURM here: `scontrol` is a script that notes what it was asked, and when.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import dump
from fptt_dist.training.process.signals import NO_PROGRESS
from fptt_dist.training.run import train
from tests.launchers.test_jobs import stand_in
from tests.program import Program
from tests.training.helpers import assert_same_run, checkpoints, isolated, steps, tiny

ROOT = Path(__file__).parents[2]
# Each case is a child of one warm process: importing torch takes longer than all of them.
DRIVER = """
import json, os, signal, sys, time
from fptt_dist.launchers.slurm import requeue

for case in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(case["log"], os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = open(2, "w")
        os.environ.update(case["environment"])
        requeue.SECONDS = case["seconds"]
        requeue.requeue_on_signal(case["rank"])
        if case["forked"]:
            ready, ends = os.pipe()
            inner = os.fork()
            if inner == 0:
                os.write(ends, b"x")
                for _ in range(3000):  # a signal just before one long sleep would be noticed at its end
                    time.sleep(0.01)
                os._exit(98)
            os.read(ready, 1)
            os.kill(inner, signal.SIGUSR2)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
        os.kill(os.getpid(), signal.SIGUSR2)
        os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
JOB = {"SLURM_JOB_ID": "77"}
SHOW = '[ "$1" = show ] && { echo "JobId=77 ${SHOWN:-JobState=RUNNING}"; exit 0; }\n'
BACK = "job 77 is back in the queue, and resumes by itself\n"
HINT = "submit it again, with resume=auto\n"


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def scontrol(tmp_path: Path) -> Callable[[str], Path]:
    """Puts a scontrol that notes what it is to requeue, and does more, into a folder of programs, which it returns."""

    def install(more: str = "") -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        stand_in(folder, "scontrol", f'{SHOW}echo "$@" >> {tmp_path / "asked"}\n{more}')
        return folder

    return install


def asked(tmp_path: Path) -> list[str]:
    """What scontrol was to requeue, and what else the stand-in noted."""
    path = tmp_path / "asked"
    return path.read_text().splitlines() if path.is_file() else []


def environment(programs: Path, **variables: str) -> dict[str, str]:
    """Of a process that finds these programs first."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TORCHELASTIC"))}
    return {**clean, "PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}", **variables}


# Before training.

CASES: dict[str, tuple[dict[str, Any], int, str, list[str]]] = {
    "in a job": ({}, 0, BACK, ["requeue 77"]),
    "outside a job": ({"environment": {}}, -signal.SIGUSR2, "", []),
    "another rank": ({"rank": "1"}, 0, "", []),
    "a forked child": ({"forked": True}, 140, "", []),
    "refused": (
        {"script": "echo 'Requested operation is presently disabled for job 77' >&2; exit 1"},
        140,
        "fptt-dist: job 77 could not be put back into the queue (Requested operation is presently disabled for job "
        f"77): {HINT}",
        ["requeue 77"],
    ),
    "refused without a word": (
        {"script": "exit 1"},
        140,
        f"fptt-dist: job 77 could not be put back into the queue (): {HINT}",
        ["requeue 77"],
    ),
    "it hangs": (
        {"script": "exec /bin/sleep 60", "seconds": 0.3},
        140,
        "fptt-dist: job 77 could not be put back into the queue (Command '['scontrol', 'requeue', '77']' timed out "
        f"after 0.3 seconds): {HINT}",
        ["requeue 77"],
    ),
    "the signal comes again": (
        {"script": "[ -e $0.once ] || { : > $0.once; kill -USR2 $PPID; }"},
        0,
        BACK,
        ["requeue 77"],
    ),
    "no scontrol": (
        {"script": None},
        140,
        "fptt-dist: job 77 could not be put back into the queue ([Errno 2] No such file or directory: 'scontrol'): "
        f"{HINT}",
        [],
    ),
}


def test_before_training(tmp_path: Path) -> None:
    cases, expected = [], {}
    folders = {name: tmp_path / name.replace(" ", "-") for name in CASES}
    for name, (special, *outcome) in CASES.items():
        folder = folders[name]
        folder.mkdir()
        script = special.pop("script", "")
        if script is not None:
            stand_in(folder, "scontrol", f'echo "$@" >> {folder / "asked"}\n{script}')
        given = {"PATH": str(folder), **special.pop("environment", JOB)}
        usual = {"rank": "0", "seconds": 20.0, "forked": False, "log": str(folder / "log")}
        cases.append({**usual, "environment": given, **special})
        expected[name] = outcome
    command = [sys.executable, "-c", DRIVER, json.dumps(cases)]
    given = environment(Path("/nowhere"))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=given, timeout=60)
    codes = map(int, done.stdout.split())
    outcomes = {
        name: [code, (folders[name] / "log").read_text(), asked(folders[name])]
        for name, code in zip(CASES, codes, strict=True)
    }
    assert outcomes == expected


# While training. The batches of the second are long: a second signal comes before the first one's batch is over.

OFTEN = {"evaluate.every_batches": 100000, "checkpoint.every_batches": 100000, "task.examples": 400000}
LONG = {**OFTEN, "task.length": 1600, "fptt.windows": 800}
BATCHES = 100000


@pytest.fixture
def trained(tmp_path: Path, scontrol: Callable[[str], Path]) -> Iterator[Callable[..., Program]]:
    """Starts `fptt-dist train` in a job; the run is in the folder "a run"."""
    programs: list[Program] = []

    def start(overrides: dict[str, Any], *words: str, batches: int = BATCHES, **variables: str) -> Program:
        config = tmp_path / "config.yaml"
        config.write_text(dump(tiny(tmp_path / "a run", overrides, batches=batches)))
        path = scontrol(f"/bin/cat '{tmp_path / 'a run' / 'checkpoints' / 'latest'}' >> {tmp_path / 'asked'}; exit 0")
        given = environment(path, OMP_NUM_THREADS="1", **variables)
        programs.append(
            Program(tmp_path / "log", ["-m", "fptt_dist", "train", str(config), *words], given, forked=True)
        )
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def at_batch(program: Program, run: Path, batch: int) -> None:
    metrics = run / "metrics.jsonl"
    program.wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") >= batch)


def send(program: Program, *numbers: signal.Signals) -> int:
    """Send signals one after another; the exit code."""
    for number in numbers:
        program.process.send_signal(number)
        time.sleep(0.2)
    return program.end()


@pytest.mark.slow
def test_a_job_saves_then_goes_back_and_goes_on(tmp_path: Path, trained: Callable[..., Program]) -> None:
    run = tmp_path / "a run"
    overrides = {**OFTEN, "model.dropout": 0.5, "model.layers": 2}
    first = trained(overrides, **JOB)
    at_batch(first, run, 5)
    assert send(first, signal.SIGUSR2) == 0, first.text()
    (batch,) = steps(run)
    newest = checkpoints(run)[-1]
    assert first.text().splitlines()[-2:] == [
        f"stopped by a signal after batch {batch} of {BATCHES}, saved in {newest}",
        "job 77 is back in the queue, and resumes by itself",
    ]
    assert first.text().count(str(newest)) == 1
    assert asked(tmp_path) == ["requeue 77", newest.name]  # which was whole by then
    assert json.loads((run / "job.json").read_text()) == {"job": "77"}
    total = batch + 3
    second = trained(overrides, f"train.max_batches={total}", SLURM_RESTART_COUNT="1", **JOB)
    assert second.end() == 0, second.text()
    assert second.text().startswith(f"resume=auto: SLURM started this job again\nresumed from {newest}\n")
    train(tiny(tmp_path / "straight", overrides, batches=total))
    assert_same_run(tmp_path / "straight", run)


@pytest.mark.slow
def test_the_first_start_of_a_job_does_not_resume(tmp_path: Path, trained: Callable[..., Program]) -> None:
    train(tiny(tmp_path / "a run", batches=1))
    program = trained({}, batches=2, SLURM_RESTART_COUNT="0", **JOB)
    assert program.end() == 2
    assert " holds a run already: type resume=auto to resume it" in program.text()
    assert asked(tmp_path) == []


OVER, CANCELLED = "JobState=COMPLETING Reason=TimeLimit", "JobState=COMPLETING Reason=None"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "every", "shown", "code", "says"),
    [
        ([signal.SIGTERM], 9, "", 143, "fptt-dist: stopped by a signal"),
        ([signal.SIGTERM, signal.SIGUSR2], 9, "", 0, "stopped by a signal"),
        ([signal.SIGTERM, signal.SIGTERM], 9, "", -signal.SIGTERM, None),
        ([signal.SIGUSR2, signal.SIGINT], 1, OVER, -signal.SIGINT, None),
        ([signal.SIGUSR2, signal.SIGTERM], 1, OVER, 0, BACK.strip()),
        ([signal.SIGUSR2, signal.SIGTERM], 9, OVER, -signal.SIGTERM, NO_PROGRESS),
        ([signal.SIGUSR2, signal.SIGTERM], 1, CANCELLED, -signal.SIGTERM, None),
        ([signal.SIGUSR2], 9, CANCELLED, 140, "fptt-dist: stopped by a signal"),
        ([signal.SIGUSR2], 9, OVER, 0, "stopped by a signal"),
        ([signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM], 1, OVER, 0, BACK.strip()),
    ],
)
def test_signals_in_a_long_batch(
    numbers: list[signal.Signals],
    every: int,
    shown: str,
    code: int,
    says: str | None,
    tmp_path: Path,
    trained: Callable[..., Program],
) -> None:
    run = tmp_path / "a run"
    program = trained({**LONG, "checkpoint.every_batches": every}, **JOB, SHOWN=shown)
    at_batch(program, run, 1)
    metrics, latest = run / "metrics.jsonl", run / "checkpoints" / "latest"

    def saved() -> bool:
        return latest.is_file() and int(latest.read_text().partition("-")[2] or 0) == metrics.read_text().count("\n")

    program.wait_until(lambda: every > 1 or saved())
    time.sleep(0.1)  # now in a batch of its own, after the last one was saved
    before = program.text()
    assert send(program, *numbers) == code, program.text()
    assert asked(tmp_path)[:1] == ["requeue 77"] * (code == 0)
    said = program.text().removeprefix(before)
    assert said == "" if says is None else said.startswith(says)
    assert "Traceback" not in program.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shown", "code"),
    [("JobState=RUNNING PreemptTime=2026-01-01T00:00:00", 0), ("JobState=RUNNING PreemptTime=None", 143)],
)
def test_sigterm_of_a_job_that_must_make_room(
    shown: str, code: int, tmp_path: Path, trained: Callable[..., Program]
) -> None:
    run = tmp_path / "a run"
    program = trained(OFTEN, **JOB, SHOWN=shown)
    at_batch(program, run, 3)
    assert send(program, signal.SIGTERM) == code, program.text()
    assert len(steps(run)) == 1
    assert asked(tmp_path)[:1] == ["requeue 77"] * (code == 0)


@pytest.mark.slow
def test_a_signal_that_torchruns_agent_passes_on_is_the_same_one(
    tmp_path: Path, trained: Callable[..., Program]
) -> None:
    run = tmp_path / "a run"
    program = trained(LONG, TORCHELASTIC_RUN_ID="none", **JOB)
    at_batch(program, run, 1)
    assert send(program, signal.SIGTERM, signal.SIGTERM, signal.SIGTERM) == 143, program.text()
    assert len(steps(run)) == 1
    assert asked(tmp_path) == []


@pytest.mark.slow
def test_a_job_that_slurm_does_not_take_back(
    tmp_path: Path, trained: Callable[..., Program], scontrol: Callable[[str], Path]
) -> None:
    run = tmp_path / "a run"
    program = trained(OFTEN, **JOB)
    scontrol("echo 'Job/step already completing or completed' >&2; exit 1")
    at_batch(program, run, 5)
    assert send(program, signal.SIGUSR2) == 140
    assert program.text().splitlines()[-1] == (
        "fptt-dist: job 77 could not be put back into the queue (Job/step already completing or completed): submit it "
        "again, with resume=auto"
    )
    assert len(steps(run)) == 1
