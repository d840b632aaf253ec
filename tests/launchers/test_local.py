"""`fptt-dist launch`: real processes under torchrun's agent, their exit codes, and what is refused before any."""

import json
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.launchers.torchrun import launch
from tests.program import Program
from tests.training.helpers import assert_same_checkpoint, records, result, without_clock

ROOT = Path(__file__).parents[2]
SMALL = {
    "task.length": "12",
    "task.examples": "20",
    "task.validation": "16",
    "task.test": "16",
    "model.hidden": "4",
    "fptt.windows": "3",
    "train.batch_size": "4",
    "train.max_batches": "20",
    "evaluate.every_batches": "10",
    "logging.every_batches": "1",
    "logging.tensorboard": "false",
    "device": "cpu",
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "TORCHELASTIC_"))}


def processes_of(agent: Program) -> list[int]:
    """The process ids of the processes that an agent started, each in a session of its own."""
    pid = agent.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def command(log: Path, *words: str) -> Iterator[Program]:
    """Start a command; nothing of it is left at the end."""
    started = Program(log, list(words), ENVIRONMENT, forked=words[:2] == ("-m", "fptt_dist"))
    try:
        yield started
    finally:
        if started.process.poll() is None:
            for pid in [*processes_of(started), started.process.pid]:
                with suppress(ProcessLookupError):  # it may end between the two
                    os.kill(pid, signal.SIGKILL)
            started.process.wait()


def launched(tmp_path: Path, *words: str) -> tuple[int, str]:
    """`fptt-dist launch …`: its exit code, and what it printed."""
    with command(tmp_path / "log", "-m", "fptt_dist", "launch", *words) as started:
        return started.end(), started.text()


def alive(pid: int) -> bool:
    """Return whether it runs; what has ended may wait for its parent to ask."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def small(run: Path, **more: str) -> list[str]:
    """The words of a run of a second in the folder `run`; in `more`, __ stands for a dot."""
    settings = {**SMALL, "run.dir": str(run), **{key.replace("__", "."): value for key, value in more.items()}}
    return ["add_task", *(f"{key}={value}" for key, value in settings.items())]


def batches(run: Path) -> list[int]:
    """The batches recorded in metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record["batch"] for record in found if record["kind"] == "train"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_mistakes() -> None:
    no_host = "no.such.host.invalid:29500"
    cases: list[tuple[dict[str, Any], list[str], str]] = [
        ({}, ["train.max_batchs=3"], "train.max_batchs: unknown key; did you mean train.max_batches"),
        ({}, ["word"], "override word: not of the form key=value, such as optimizer.lr=1e-3"),
        (
            {"nnodes": 2},
            [],
            "--nnodes 2 needs --rdzv HOST:PORT, the same on all nodes: one of them, and a port free on it",
        ),
        (
            {"rdzv": "node0:29500"},
            [],
            "--rdzv node0:29500 is for several nodes: type --nnodes 2 or more, or leave it out",
        ),
        *(
            (
                {"nnodes": 2, "rdzv": place},
                [],
                f"--rdzv {place} is not of the form HOST:PORT, such as --rdzv node0:29500",
            )
            for place in ("node0", "node0:", ":29500", "node0:port", "node0:0", "node0:65536")
        ),
        (
            {"nnodes": 2, "rdzv": no_host},
            [],
            f"--rdzv {no_host}: no.such.host.invalid is no host that this node knows (",
        ),
    ]
    for options, overrides, message in cases:
        with pytest.raises(ConfigError) as caught:
            launch("add_task", overrides, nproc=2, **options)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_more_processes_than_gpus() -> None:
    import torch

    count = torch.cuda.device_count()
    with pytest.raises(ConfigError) as caught:
        launch("add_task", [], nproc=count + 1)
    assert str(caught.value) == (
        f"--nproc {count + 1} is more than this node's GPUs, {count}: type --nproc {count}, or device=cpu"
    )


def test_a_mistake_starts_no_process(tmp_path: Path) -> None:
    code, text = launched(tmp_path, "--nproc", "2", "add_task", f"run.dir={tmp_path / 'run'}", "optimizer.lrr=1")
    assert code == 2
    assert text.startswith("fptt-dist: optimizer.lrr: unknown key; did you mean optimizer.lr?")
    assert text.count("\n") == 1
    assert not (tmp_path / "run").exists()


LONG = {"train__max_batches": "200", "evaluate__every_batches": "100", "model__dropout": "0.5", "model__layers": "2"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two processes that nothing disturbs, and what was printed."""
    folder = tmp_path_factory.mktemp("straight")
    code, text = launched(folder, "--nproc", "2", *small(folder / "run", **LONG))
    assert code == 0, text
    return folder / "run", text


def assert_went_on(run: Path, straight: Path) -> None:
    """A run that was interrupted ended as the undisturbed one."""
    assert_same_checkpoint(straight, run)
    assert batches(run) == batches(straight) == list(range(1, 201))
    losses = [[record["loss"] for record in records(each, "train")] for each in (straight, run)]
    assert losses[0] == losses[1]
    assert without_clock(result(straight)) == without_clock(result(run))


@pytest.mark.slow
def test_two_processes_train(straight: tuple[Path, str]) -> None:
    run, text = straight
    cores = len(os.sched_getaffinity(0))
    assert text.startswith(f"OMP_NUM_THREADS={max(1, cores // 2)}: 2 workers on {cores} cores\n")
    assert result(run)["workers"] == 2
    assert text.count("adding fptt: test mse ") == 1
    assert "torch" not in text.replace("torchrun's RANK", "")


@pytest.mark.slow
def test_a_message_and_the_exit_code_of_the_processes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    code, text = launched(tmp_path, "--nproc", "2", *small(tmp_path / "run"))
    assert code == 2
    said = [line for line in text.splitlines() if line.startswith("fptt-dist: ")]
    assert 1 <= len(said) <= 2  # the slower process may be ended before it has said it too
    assert all("is not empty and holds no run: type run.dir=…" in line for line in said)
    assert "Traceback" not in text
    assert "FAILED" not in text

    far = small(tmp_path / "far", optimizer__lr="1e30", train__max_norm="null")
    code, text = launched(tmp_path, "--nproc", "2", *far)
    assert code == 1
    assert "is not finite in window" in text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_reaches_the_processes_which_save(
    tmp_path: Path, straight: tuple[Path, str], number: signal.Signals, code: int
) -> None:
    run = tmp_path / "a run"  # with a space, which the printed command must quote
    options = ["--nproc", "2", "--max-restarts", "1"]
    with command(tmp_path / "log", "-m", "fptt_dist", "launch", *options, *small(run, **LONG)) as started:
        started.wait_until(lambda: len(batches(run)) > 3)
        workers = processes_of(started)
        started.process.send_signal(number)
        assert started.end() == code, started.text()
    assert len(workers) == 2
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert started.text().count("stopped by a signal after batch ") == 2
    assert "Traceback" not in started.text()
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    assert f"saved in {newest}" in started.text()
    hints = {line for line in started.text().splitlines() if line.startswith("resume ")}
    assert hints == {f"resume with: fptt-dist launch '{run}/config.yaml' {' '.join(options)} resume=auto"}
    if number != signal.SIGTERM:
        return  # the hint is the same
    words = shlex.split(hints.pop().removeprefix("resume with: fptt-dist launch "))
    code, text = launched(tmp_path, *words)
    assert code == 0, text
    assert_went_on(run, straight[0])


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_goes_on_exactly(tmp_path: Path, straight: tuple[Path, str]) -> None:
    killed = tmp_path / "killed"
    words = ["launch", "--nproc", "2", "--max-restarts", "1", *small(killed, **LONG, checkpoint__every_batches="1")]
    with command(tmp_path / "log", "-m", "fptt_dist", *words) as started:
        started.wait_until(lambda: len(batches(killed)) > 10)
        os.kill(processes_of(started)[1], signal.SIGKILL)
        assert started.end() == 0, started.text()
    assert started.text().startswith("resume=auto: a restart resumes from the newest checkpoint\n")
    assert "local rank 0, restart 1 (from torchrun's" in started.text()
    assert f"resumed from {killed / 'checkpoints'}" in started.text()
    assert_went_on(killed, straight[0])


NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "fptt_dist", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_the_agent_ignores_a_hangup_and_is_killed(tmp_path: Path, straight: tuple[Path, str]) -> None:
    """Its workers train on under nohup; without it they save and end, and what resumes is the undisturbed run."""
    killed = tmp_path / "killed"
    words = ["launch", "--nproc", "2", *small(killed, **LONG)]
    with command(tmp_path / "log", "-c", NOHUP, *words) as started:
        started.wait_until(lambda: len(batches(killed)) > 3)
        workers = processes_of(started)
        try:
            for pid in (started.process.pid, *workers):
                os.kill(pid, signal.SIGHUP)
            at = len(batches(killed))
            started.wait_until(lambda: len(batches(killed)) > at + 5)
            started.process.kill()
            assert started.end() == -signal.SIGKILL
            deadline = time.monotonic() + 30
            while any(map(alive, workers)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(map(alive, workers)), started.text()
        finally:
            for pid in filter(alive, workers):
                os.kill(pid, signal.SIGKILL)
    assert len(workers) == 2
    newest = max(batches(killed))
    assert at < newest < 200
    assert started.text().count(f"stopped by a signal after batch {newest} of 200, saved in ") == 2
    code, text = launched(tmp_path, "--nproc", "2", *small(killed, **LONG), "resume=auto")
    assert code == 0, text
    assert f"resumed from {killed / 'checkpoints' / f'step-{newest:08d}'}\n" in text
    assert_went_on(killed, straight[0])


@pytest.mark.slow
def test_a_killed_process_without_restarts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = small(run, train__max_batches="100000")
    with command(tmp_path / "log", "-m", "fptt_dist", "launch", "--nproc", "2", *settings) as started:
        started.wait_until(lambda: len(batches(run)) > 3)
        os.kill(processes_of(started)[1], signal.SIGKILL)
        assert started.end() == 128 + signal.SIGKILL, started.text()
    again = f"fptt-dist launch {run}/config.yaml --nproc 2 resume=auto"
    assert f"rank 1 was killed by SIGKILL: resume with: {again}\n" in started.text()


@pytest.mark.slow
def test_two_machines(tmp_path: Path) -> None:
    run = tmp_path / "run"
    place = f"127.0.0.1:{free_port()}"
    words = ["launch", "--nproc", "1", "--nnodes", "2", "--rdzv", place, *small(run)]
    with (
        command(tmp_path / "first", "-m", "fptt_dist", *words) as first,
        command(tmp_path / "second", "-m", "fptt_dist", *words) as second,
    ):
        assert (first.end(), second.end()) == (0, 0), first.text() + second.text()
    assert json.loads((run / "result.json").read_text())["workers"] == 2
    text = first.text() + second.text()
    for rank in range(2):
        assert f"rank {rank} of 2, local rank 0 of 1 on node {rank} of 2 (from torchrun's" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_port_that_another_program_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        place = f"127.0.0.1:{server.getsockname()[1]}"
        words = ["--nproc", "1", "--nnodes", "2", "--rdzv", place, *small(tmp_path / "run")]
        code, text = launched(tmp_path, *words)
        server.shutdown(socket.SHUT_RDWR)
    message = f"--rdzv {place}: another program has that port: type another one, the same on all nodes"
    assert (code, text) == (2, f"fptt-dist: {message}\n")


def hang_up(server: socket.socket) -> None:
    """Accept every connection and close it, until the server is shut down."""
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


IMPATIENT = """
import sys
from fptt_dist.launchers import torchrun
torchrun.JOIN_SECONDS = 2
from fptt_dist.cli import main
main()
"""


@pytest.mark.slow
def test_a_machine_that_never_comes(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(IMPATIENT)
    place = f"127.0.0.1:{free_port()}"
    words = ["launch", "--nproc", "1", "--nnodes", "2", "--rdzv", place, "add_task", "device=cpu"]
    with command(tmp_path / "log", str(tmp_path / "start.py"), *words) as started:
        assert started.end() == 1
    assert started.text().splitlines()[-1] == (
        f"fptt-dist: --rdzv {place}: not all of the 2 nodes came within 2 s: type the same command, with "
        "--nnodes 2, on each"
    )
    assert "Traceback" not in started.text()


FAULTY = """
from fptt_dist.training import run
run.train = lambda config: {}["fault"]
from fptt_dist.cli import main
main()
"""


@pytest.mark.slow
def test_torchrun_prints_a_fault_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(FAULTY)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(tmp_path / "start.py")]
    with command(tmp_path / "log", *words, "train", "add_task", f"run.dir={tmp_path / 'run'}") as started:
        assert started.end() == 1
    _, _, table = started.text().partition("Root Cause (first observed failure):")
    assert "KeyError: 'fault'" in table
