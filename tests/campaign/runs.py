"""Tiny runs of the campaign: how each is started, disturbed, and compared with an undisturbed one."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fptt_dist.config import Config, dump
from tests.parallel.fault_driver import WORDS
from tests.parallel.runs import tiny
from tests.program import Program
from tests.training.helpers import assert_same_checkpoint, records, result, without_clock

BATCHES = 24
CONSENSUS: dict[str, Any] = {"parallel.strategy": "consensus", "parallel.dual": "local"}
RUNS: dict[str, tuple[int, dict[str, Any]]] = {  # workers, and what is set
    "single": (1, {}),
    "data parallel": (2, {"parallel.strategy": "data_parallel"}),
    "consensus": (2, {"parallel.strategy": "consensus", "parallel.sync_delay": 1}),
    # With K = 4 updates per batch and H = 5 most checkpoints are saved inside a sync interval.
    "consensus inside a sync interval": (2, {**CONSENSUS, "parallel.sync_every": 5}),
    "fsdp": (2, {"parallel.strategy": "fsdp"}),
}
COMMON: dict[str, Any] = {
    **WORDS,
    "train.max_batches": BATCHES,
    "checkpoint.every_batches": 2,
    "checkpoint.keep_last": 3,
    "evaluate.every_batches": 4,
    "parallel.timeout_seconds": 60.0,
    "resume": "auto",
}
SECONDS = 120.0  # in which every program ends
AGENTS = ("OMP_", "TORCHELASTIC_")  # variables that no program inherits, nor its place among workers
PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TRAFFIC = ("collectives", "bytes_sent", "blocked_seconds", "blocked_share")  # of a record, and since the start
REST = re.compile(r".*\.tmp(/|$)")


@dataclass
class Run:
    """One run, of one or two workers.

    Args:
        place: a folder for the run, its configuration and what its programs print.
        kind: of `RUNS`.
        more: further keys.

    Attributes:
        path: the run's folder.
        workers: number of workers.
        config: the configuration's file.
        life: how often it was started.
    """

    place: Path
    kind: str
    more: dict[str, Any] = field(default_factory=dict)
    life: int = 0

    def __post_init__(self) -> None:
        self.path = self.place / "run"
        self.workers, keys = RUNS[self.kind]
        self.config = self.place / "config.yaml"
        self.place.mkdir(parents=True, exist_ok=True)
        self.config.write_text(dump(self.configuration(keys)))

    def configuration(self, keys: dict[str, Any]) -> Config:
        """The run's configuration, to resume where there is something."""
        return tiny(self.path, {**COMMON, **keys, **self.more})

    @contextmanager
    def started(self) -> Iterator[list[Program]]:
        """The run's workers, forked from a warm process, each started by nobody's agent; all gone at the end."""
        self.life += 1
        meeting = {"WORLD_SIZE": str(self.workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} for rank in range(self.workers)]
        words = ["-m", "fptt_dist", "train", str(self.config)]
        programs: list[Program] = []
        try:
            for rank, place in enumerate(places if self.workers > 1 else [{}]):
                log = self.place / f"log-{self.life}-{rank}"
                programs.append(Program(log, words, {**environment(), **place}, forked=True))
            yield programs
        finally:
            stop(programs)

    @contextmanager
    def launched(self, *options: str) -> Iterator[Program]:
        """`fptt-dist launch` of the run; it and its workers are gone at the end."""
        self.life += 1
        words = ["-m", "fptt_dist", "launch", "--nproc", str(self.workers), *options, str(self.config)]
        agent = Program(self.place / f"log-{self.life}", words, environment(), forked=True)
        children: list[int] = []
        try:
            yield agent
        finally:
            if agent.process.poll() is None:
                children = children_of(agent.process.pid)
            stop([agent])
            for child in children:
                kill(child)

    def batches(self) -> int:
        """Number of batches recorded so far."""
        metrics = self.path / "metrics.jsonl"
        return metrics.read_bytes().count(b'"kind": "train"') if metrics.is_file() else 0

    def wait(self, programs: Sequence[Program], batch: int, milliseconds: float) -> bool:
        """Return after a batch is recorded and so many milliseconds; False where a program has ended before."""
        deadline = time.monotonic() + SECONDS
        while self.batches() < batch:
            if any(program.process.poll() is not None for program in programs):
                return False
            assert time.monotonic() < deadline, f"batch {batch} was not reached: {texts(programs)}"
            time.sleep(0.002)
        time.sleep(milliseconds / 1000)
        return all(program.process.poll() is None for program in programs)

    def gone(self, pids: Sequence[int]) -> None:
        """Return when processes that lost their parent have ended."""
        deadline = time.monotonic() + SECONDS
        while alive := [pid for pid in pids if _runs(pid)]:
            assert time.monotonic() < deadline, f"the processes {alive} did not end"
            time.sleep(0.02)

    def finish(self) -> None:
        """Start or resume the run, to its end."""
        with self.started() as programs:
            assert ends(programs) == [0] * self.workers, texts(programs)


def straight(folder: Path, kind: str) -> Path:
    """The folder of an undisturbed run of a kind, trained once."""
    run = Run(folder / "undisturbed" / kind.replace(" ", "-"), kind)
    if not (run.path / "result.json").is_file():
        run.finish()
    return run.path


def assert_undisturbed(run: Path, undisturbed: Path, *, metrics: bool = True) -> None:
    """Fail unless a run ended as an undisturbed one, bit for bit, and left no temporary files.

    Args:
        run: a finished run's folder.
        undisturbed: the other's.
        metrics: whether its records were left alone too.
    """
    assert_same_checkpoint(undisturbed, run)
    assert without_clock(result(undisturbed)) == without_clock(result(run))
    if metrics:
        for kind in ("train", "evaluation"):
            assert _numbers(undisturbed, kind) == _numbers(run, kind), f"the {kind} records differ"
        assert len(records(run, "train")) == BATCHES
    rest = [path for path in run.rglob("*") if REST.fullmatch(path.relative_to(run).as_posix())]
    assert rest == [], f"left over: {rest}"


def _numbers(run: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind without what a clock decides."""
    lines = without_clock(records(run, kind))
    return [{name: value for name, value in line.items() if name not in TRAFFIC} for line in lines]


def assert_one_message(program: Program, codes: Sequence[int]) -> int:
    """Fail unless a program ended with one message and one of the exit codes; the code."""
    code, text = program.end(SECONDS), program.text()
    assert code in codes, f"exit code {code}: {text}"
    assert "Traceback" not in text, text
    assert text.count("fptt-dist: ") == 1, f"{text.count('fptt-dist: ')} messages: {text}"
    return code


def environment() -> dict[str, str]:
    """The variables of a program that nobody's agent has started."""
    kept = {k: v for k, v in os.environ.items() if k not in PLACES and not k.startswith(AGENTS)}
    return {**kept, "OMP_NUM_THREADS": "1"}


def ends(programs: Sequence[Program]) -> list[int]:
    """The exit codes of programs, which must not show a traceback."""
    codes = [program.end(SECONDS) for program in programs]
    assert "Traceback" not in texts(programs), texts(programs)
    return codes


def texts(programs: Sequence[Program]) -> str:
    """Everything that programs have printed."""
    return "".join(program.text() for program in programs)


def stop(programs: Sequence[Program]) -> None:
    """End programs, whether they stand still or run."""
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()


def children_of(pid: int) -> list[int]:
    """The process ids of a process's children; none where it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def kill(pid: int) -> None:
    """Kill a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _runs(pid: int) -> bool:
    """Return whether a process is there and is no zombie, which an init that waits for none leaves."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
