"""Whole programs that are killed, hang, find nobody, or lose a machine: what is said, and that the run resumes."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import Config, dump
from tests.parallel.fault_driver import WORDS, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import tiny
from tests.program import Program
from tests.training.helpers import content, differing, records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DRIVER = ["-m", "tests.parallel.fault_driver", "train"]
PLACES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
CONSENSUS: dict[str, Any] = {"strategy": "consensus", "sync_every": 3, "dual": "local"}
FSDP: dict[str, Any] = {"strategy": "fsdp"}
BATCHES = 10
Start = tuple[Path, list[str], dict[str, str]]  # log, command, variables


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def started(*programs: Start) -> Iterator[list[Program]]:
    """Programs that are all gone at the end."""
    inherited = {name: value for name, value in os.environ.items() if name not in PLACES} | {"OMP_NUM_THREADS": "1"}
    running = [Program(log, words, {**inherited, **variables}) for log, words, variables in programs]
    try:
        yield running
    finally:
        for program in running:
            program.kill()


def written(config: Config, path: Path) -> str:
    """The configuration as a file."""
    path.write_text(dump(config))
    return str(path)


def workers(folder: Path, config: str, world: int, variables: dict[str, str]) -> list[Start]:
    """So many processes without an agent."""
    port = str(free_port())
    meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} for rank in range(world)]
    return [(folder / f"log{r}", [*DRIVER, config], {**place, **variables}) for r, place in enumerate(places)]


def agent(config: str, *options: str) -> list[str]:
    """torchrun's command."""
    return ["-m", "torch.distributed.run", *options, *DRIVER, config]


@pytest.fixture
def straight(pool: Pool, tmp_path: Path) -> Callable[..., Path]:
    """The last checkpoint of the same run, uninterrupted, in the pool."""

    def train(keys: dict[str, Any], machines: int = 1) -> Path:
        pool.run(whole, tiny(tmp_path / "straight", keys), machines, world=2 * machines)
        return tmp_path / f"straight/checkpoints/step-{BATCHES:08d}"

    return train


@pytest.mark.parametrize("parallel", [CONSENSUS, FSDP], ids=["consensus", "fsdp"])
def test_workers_killed_in_a_save_in_an_agreement_and_between(
    tmp_path: Path, straight: Callable[..., Path], parallel: dict[str, Any]
) -> None:
    """Three kills, one a life: torchrun starts all again, and they end where the uninterrupted run ended.

    The saves of fsdp are under way in the background.
    """
    keys = {**WORDS, "parallel": parallel, "checkpoint.every_batches": 1, "checkpoint.async_save": parallel is FSDP}
    expected = content(straight(keys))
    folder = tmp_path / "run"
    config = written(tiny(folder, {**keys, "resume": "auto"}), tmp_path / "config.yaml")
    moment = "sync" if parallel is CONSENSUS else "save"
    variables = {
        "FAULTS": f"0 1 save 3 kill,1 0 {moment} 3 kill,2 1 batch 2 kill",
        "FAULT_GRACE": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    command = agent(config, "--standalone", "--nproc-per-node", "2", "--max-restarts", "3")
    with started((tmp_path / "log", command, variables)) as [torchrun]:
        assert torchrun.end(150.0) == 0, torchrun.text()
        text = torchrun.text()
    resumed = [int(batch) for batch in re.findall(r"resumed from \S+step-(\d+)", text)]
    assert resumed[::2] == sorted(resumed[::2])
    assert len(resumed) == 6, text
    assert resumed[0] == 2, "the save of batch 3 was truncated"
    assert differing(expected, content(folder / f"checkpoints/step-{BATCHES:08d}")) == []
    assert [record["batch"] for record in records(folder, "train")] == list(range(1, BATCHES + 1))
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize("action", ["hang", "fail"])
def test_a_worker_that_does_not_come_is_named(tmp_path: Path, action: str) -> None:
    config = written(
        tiny(tmp_path / "run", {"parallel": {**CONSENSUS, "timeout_seconds": 3.0}}), tmp_path / "config.yaml"
    )
    variables = {"FAULTS": f"0 1 batch 3 {action}", "FAULT_GRACE": "1"}
    with started(*workers(tmp_path, config, 2, variables)) as [waiting, gone]:
        assert waiting.end() not in (0, 2)
        text = waiting.text()
        if action == "fail":
            assert gone.end() == 1
            assert "ZeroDivisionError: a fault of this rank alone" in gone.text()
    lost = re.search(r"rank 0 lost the other workers in the collective '([a-z ]+)' after ([\d.]+) s \((.*?)\)", text)
    assert lost is not None, text
    assert lost[3] == "no word from rank 1"
    if action == "hang":
        assert lost[1] == "sync"
        assert 2.5 < float(lost[2]) < 5.0
    assert text.splitlines()[-1].endswith(", then resume with the same command and resume=auto"), text
    assert (tmp_path / "run/flight_recorder_rank0.json").is_file(), list((tmp_path / "run").iterdir())


def test_a_missing_rank_zero_and_a_missing_other(tmp_path: Path) -> None:
    config = written(tiny(tmp_path / "run"), tmp_path / "config.yaml")
    first, _ = workers(tmp_path, config, 2, {"FAULT_START": "3"})
    _, second = workers(tmp_path, config, 2, {"FAULT_START": "3"})
    with started(first, second) as programs:
        for rank, (program, start) in enumerate(zip(programs, (first, second), strict=True)):
            port = start[2]["MASTER_PORT"]
            assert program.end() == 2, program.text()
            text = program.text()
            assert f"rank {rank} of 2, local rank {rank} (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE)" in text
            assert "could not meet the other workers within 3 s over gloo" in text
            assert f"127.0.0.1:{port}" in text
            assert "Traceback" not in text
        assert "1/2 clients joined" in programs[0].text()
        assert ", where they meet, does not answer" in programs[1].text()
    assert not (tmp_path / "run").exists()


def test_a_port_in_use(tmp_path: Path) -> None:
    config = written(tiny(tmp_path / "run"), tmp_path / "config.yaml")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        first, _ = workers(tmp_path, config, 2, {"FAULT_START": "5"})
        first[2]["MASTER_PORT"] = port
        with started(first) as [program]:
            assert program.end() == 2, program.text()
            text = program.text()
    assert f"127.0.0.1:{port}" in text
    assert "address already in use" in text.lower()
    assert "Traceback" not in text


def test_sigterm_to_one_worker_saves_on_all(tmp_path: Path) -> None:
    keys = {
        "parallel": CONSENSUS,
        "train.max_batches": 3000,
        "checkpoint.every_batches": 3000,
        "evaluate.every_batches": 3000,
    }
    config = written(tiny(tmp_path / "run", keys), tmp_path / "config.yaml")
    metrics = tmp_path / "run/metrics.jsonl"
    with started(*workers(tmp_path, config, 2, {})) as programs:
        programs[0].wait_until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 5)
        programs[1].process.send_signal(signal.SIGTERM)
        assert [program.end() for program in programs] == [143, 143]
        said = [
            re.findall(r"stopped by a signal after batch (\d+) of 3000, saved in (\S+)", p.text()) for p in programs
        ]
    assert said[0] == said[1]
    [(batch, saved)] = said[0]
    assert Path(saved) == tmp_path / f"run/checkpoints/step-{int(batch):08d}"
    assert {path.name for path in (Path(saved) / "rank").iterdir()} == {"0", "1"}


def test_two_agents_one_of_which_is_killed(tmp_path: Path, straight: Callable[..., Path]) -> None:
    """Two machines of two workers each: the second one dies with all it has, and comes back."""
    keys = {**WORDS, "parallel": {"strategy": "hierarchical", "sync_every": 3}, "checkpoint.every_batches": 1}
    expected = content(straight(keys, 2))
    folder = tmp_path / "run"
    config = written(tiny(folder, {**keys, "resume": "auto"}), tmp_path / "config.yaml")
    place = f"127.0.0.1:{free_port()}"
    variables = {"FAULT_GRACE": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def machine(number: int, log: str, faults: str) -> Start:
        options = ["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", place]
        host = f"is_host={1 - number},join_timeout=100,keep_alive_interval=1,keep_alive_max_attempt=3"
        options += ["--rdzv-id", "test", "--rdzv-conf", host, "--max-restarts", "3"]
        return tmp_path / log, agent(config, *options), {**variables, "FAULTS": faults}

    slow = ",".join(f"0 {rank} batch 5 wait" for rank in range(4))
    with started(machine(0, "log0", slow), machine(1, "log1", slow)) as [first, second]:
        first.wait_until(lambda: (folder / "checkpoints/step-00000004/manifest.json").is_file())
        time.sleep(0.5)
        second.kill()
        with started(machine(1, "log2", "")) as [third]:
            assert third.end(150.0) == 0, third.text() + first.text()
            assert first.end(60.0) == 0, first.text()
            assert "resumed from" in third.text()
    assert differing(expected, content(folder / f"checkpoints/step-{BATCHES:08d}")) == []
