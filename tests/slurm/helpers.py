"""What the tests of whole programs on SLURM share: a small run, a job that is watched, a comparison of two runs."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fptt_dist.cli import main
from fptt_dist.config import dump, load
from fptt_dist.launchers.slurm.jobs import ENDED
from fptt_dist.training.checkpoint.store import CheckpointStore
from tests.program import Program
from tests.slurm.cluster import Cluster
from tests.training.helpers import checkpoints, content, differing, records

ROOT = Path(__file__).parents[2]
BATCHES = 300  # some seconds: a signal comes long before the last one
SMALL: dict[str, Any] = {
    "task.length": 12,
    "task.examples": 40,
    "task.validation": 16,
    "task.test": 16,
    "model.hidden": 4,
    "fptt.windows": 3,
    "train.batch_size": 4,
    "train.max_batches": BATCHES,
    "evaluate.every_batches": 100,
    "checkpoint.every_batches": 100,
    "logging.every_batches": 1,
    "logging.tensorboard": False,
    "device": "cpu",
}
LONG = {"train.max_batches": 10**6}
SECONDS = 120.0  # the longest that anything takes on a machine with much else to do
# What the tests' own start sets, and no job may inherit.
OWN = ("OMP_", "TORCHELASTIC_", "PYTEST", "FPTT_", "NPROC")


def variables(cluster: Cluster, **more: str) -> dict[str, str]:
    """What a user's shell has: the cluster, and this project's environment activated."""
    kept = {name: value for name, value in cluster.environment.items() if not name.startswith(OWN)}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **more}


def small(folder: Path, overrides: dict[str, Any] | None = None) -> str:
    """The file of a small run's configuration; the run's folder is `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(dump(load("add_task", {**SMALL, "run.dir": str(folder), **(overrides or {})})))
    return str(file)


def undisturbed(factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of two processes, the same for all tests of a session."""
    run = factory.getbasetemp() / "undisturbed" / "run"
    return run if (run / "result.json").is_file() else straight(run)


def straight(folder: Path, overrides: dict[str, Any] | None = None, *, processes: int = 2) -> Path:
    """The folder of a run that torchrun's agent starts on this machine, and that nothing disturbs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith((*OWN, "SLURM"))}
    words = ["-m", "fptt_dist", "launch", "--nproc", str(processes), small(folder, overrides)]
    program = Program(folder.with_suffix(".log"), words, {**clean, "OMP_NUM_THREADS": "1"})
    try:
        assert program.end(2 * SECONDS) == 0, program.text()
    finally:
        program.kill()
    return folder


@dataclass
class Job:
    """A job of the cluster.

    Attributes:
        cluster: its cluster.
        number: its number.
        log: what it prints.
    """

    cluster: Cluster
    number: str
    log: Path

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def state(self) -> str:
        return self.cluster.state(self.number)

    def shown(self, field: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{field}=(\S*)", self.cluster.command("scontrol", "show", "job", self.number))
        assert found is not None, field
        return found[1]

    def until(self, ready: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
        """Return when `ready`; the test fails, with the log, when that takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                story = self.cluster.command("scontrol", "show", "job", self.number)
                pytest.fail(f"waited {seconds:g} s for {what}, in vain\n{story}{self.text()}")
            time.sleep(0.05)

    def reach(self, *states: str) -> None:
        """Return when the job is in one of `states`."""
        self.until(lambda: self.state() in states, f"job {self.number} to be {' or '.join(states)}")

    def end(self, *, state: str = "COMPLETED", codes: tuple[str, ...] = ("0:0",)) -> None:
        """Wait for the end of the job, which must be this one, with one of `codes`."""
        self.until(lambda: self.state() in ENDED, f"job {self.number} to end")
        ended, code = self.state(), self.shown("ExitCode")
        assert (ended, code) in {(state, each) for each in codes}, f"{ended} {code}\n{self.text()}"

    def train(self, run: Path, batch: int) -> None:
        """Return when the job has trained `batch`."""

        def ready() -> bool:
            assert self.state() not in ENDED, f"{self.state()}\n{self.text()}"
            return newest_batch(run) >= batch

        self.until(ready, f"batch {batch}")

    def requeued(self, times: int = 1) -> None:
        """Return when the job is back in the queue, where it waits for some seconds."""
        back = "PENDING", str(times)
        self.until(lambda: (self.shown("JobState"), self.shown("Restarts")) == back, "another start")

    def start_now(self) -> None:
        """Let a requeued job start without its wait."""
        self.cluster.start_now(self.number)


def sbatch(cluster: Cluster, log: Path, *words: str, **more: str) -> Job:
    """`sbatch words…`, typed in the project's folder; with more environment variables."""
    command = ["sbatch", "--parsable", f"--output={log}", *words]
    return Job(cluster, checked(command, variables(cluster, **more)).strip(), log)


def fptt_dist(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """`fptt-dist words…`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, variables(cluster), clear=True),
        patch.object(sys, "argv", ["fptt-dist", *words]),
        chdir(ROOT),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main()
    return subprocess.CompletedProcess(words, int(left.value.code or 0), out.getvalue(), err.getvalue())


def printed(cluster: Cluster, *words: str) -> str:
    """Return what `fptt-dist words…` prints; it must succeed."""
    done = fptt_dist(cluster, *words)
    assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def submitted(cluster: Cluster, text: str) -> tuple[Job, dict[str, str]]:
    """The job that `fptt-dist submit` has put into the queue, and the lines that it printed by their first word."""
    lines: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        name = line[:8].strip() or name
        lines[name] = f"{lines[name]}\n{line[8:]}" if name in lines else line[8:]
    return Job(cluster, lines["job"], Path(lines["log"].partition("\n")[0])), lines


def typed(words: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command typed in the project's folder."""
    # The shell finds it on the PATH of this environment, as a user's does.
    command = ["sh", "-c", 'exec "$@"', "sh", *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment, input="", capture_output=True, text=True, timeout=SECONDS, check=False
    )


def checked(words: Sequence[str], environment: dict[str, str]) -> str:
    """What a command prints that must succeed."""
    done = typed(words, environment)
    assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def newest_batch(run: Path) -> int:
    """The newest batch in metrics.jsonl; 0 before the first."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return max((json.loads(line)["batch"] for line in lines if line.endswith("\n")), default=0)


def run_id(run: Path) -> str:
    return json.loads((run / "versions.json").read_text())["run_id"]


def newest(run: Path) -> Path:
    """The newest whole checkpoint."""
    found = CheckpointStore(run / "checkpoints").newest()
    assert found is not None, list(run.rglob("*"))
    return found


def saved(run: Path) -> Path:
    """The newest checkpoint, when no other one was left half written."""
    assert not list(run.rglob("*.tmp"))
    assert checkpoints(run)[-1] == newest(run)
    return newest(run)


def batch_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def assert_same(one: Path, other: Path, batches: int = BATCHES) -> None:
    """Two runs ended after `batches`, each batch recorded once, with the same last checkpoint bit for bit."""
    left, right = saved(one), saved(other)
    assert batch_of(left) == batch_of(right) == batches
    ends = content(left), content(right)
    assert any(name.endswith("model.safetensors:recurrent.weight_ih_l0") for name in ends[0])
    assert differing(*ends) == []
    for run in (one, other):
        every = load(run / "config.yaml").logging.every_batches
        assert [record["batch"] for record in records(run, "train")] == list(range(every, batches + 1, every))
        assert (run / "result.json").is_file()
