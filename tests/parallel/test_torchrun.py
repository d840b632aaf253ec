"""The program itself under torchrun: it learns, stops when asked, resumes exactly, and says what is wrong."""

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.runs import checkpoint_tensors, same_bits
from tests.program import Program

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BATCHES = 300
SMALL = [
    "task.length=20",
    "task.validation=500",
    "task.test=500",
    "model.hidden=32",
    "fptt.windows=4",
    "optimizer.lr=1e-2",
    f"train.max_batches={BATCHES}",
    "evaluate.every_batches=50",
    "checkpoint.every_batches=100",
    "logging.every_batches=5",
    "device=cpu",
]
PLACES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}


@contextmanager
def torchrun(log: Path, *settings: str, command: list[str] | None = None) -> Iterator[Program]:
    """Start `fptt_dist train` (or another `command`) on two processes; none is left at the end."""
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*agent, *(command or ["-m", "fptt_dist"]), "train", "configs/add_task.yaml", *SMALL, *settings]
    launched = Program(log, words, {name: value for name, value in os.environ.items() if name not in PLACES})
    try:
        yield launched
    finally:
        launched.kill()


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole; none while there is no such file."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on two processes from start to end: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with torchrun(folder.with_name("log"), f"run.dir={folder}") as launched:
        assert launched.end() == 0, launched.text()
        return folder, launched.text()


def test_two_processes_learn(straight: tuple[Path, str]) -> None:
    folder, text = straight
    result = json.loads((folder / "result.json").read_text())
    assert result["workers"] == 2
    assert result["batches"] == BATCHES
    assert result["updates"] == 4 * BATCHES
    assert result["value"] < 0.08  # always saying 1 has 0.167
    for rank in range(2):
        place = f"rank {rank} of 2, local rank {rank} (from torchrun's RANK, LOCAL_RANK and WORLD_SIZE), on cpu\n"
        assert text.count(place) == 1
    assert text.count("adding fptt: test mse ") == 1
    assert text.count(f"batch {BATCHES}: validation mse ") == 1


def test_the_folder_is_whole(straight: tuple[Path, str]) -> None:
    folder, _ = straight
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "versions.json", "metrics.jsonl", "tensorboard", "checkpoints", "result.json"}
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]
    newest = folder / "checkpoints" / (folder / "checkpoints/latest").read_text().strip()
    assert newest.name == f"step-{BATCHES:08d}"
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["world"] == 2
    own = ("model", "optimizer", "loss", "random", "sync", "carried")
    assert manifest["files"].keys() == {
        *("task.safetensors", "sync.safetensors", "state.json", "rank/0/state.json", "rank/1/state.json"),
        *(f"rank/{rank}/{name}.safetensors" for rank in range(2) for name in own),
    }
    batches = [record["batch"] for record in records(folder) if record["kind"] == "train"]
    assert batches == list(range(5, BATCHES + 1, 5))


def test_sigterm_then_resume_is_the_uninterrupted_run(straight: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "it's a run"
    with torchrun(tmp_path / "stopped", f"run.dir={folder}") as launched:
        launched.wait_until(lambda: any(record["batch"] >= 60 for record in records(folder)))
        launched.process.send_signal(signal.SIGTERM)
        assert launched.end() != 0
        text = launched.text()
    stopped = re.findall(rf"stopped by a signal after batch (\d+) of {BATCHES}, saved in (.+)", text)
    assert len(stopped) == 2, text
    assert stopped[0] == stopped[1]
    batch, saved = int(stopped[0][0]), Path(stopped[0][1])
    assert 60 <= batch < BATCHES
    assert saved == folder / f"checkpoints/step-{batch:08d}"
    assert (folder / "checkpoints/latest").read_text().strip() == saved.name
    assert json.loads((saved / "manifest.json").read_text())["world"] == 2
    assert {path.name for path in (saved / "rank").iterdir()} == {"0", "1"}
    assert not (folder / "result.json").exists()

    (hint,) = {line for line in text.splitlines() if line.startswith("resume with: torchrun ")}
    words = ["-m", "torch.distributed.run", *shlex.split(hint.removeprefix("resume with: torchrun "))]
    environment = {name: value for name, value in os.environ.items() if name not in PLACES}
    launched = Program(tmp_path / "resumed", words, environment)
    try:
        assert launched.end() == 0, launched.text()
    finally:
        launched.kill()
    assert f"resumed from {saved}" in launched.text()
    last = f"checkpoints/step-{BATCHES:08d}"
    expected, got = checkpoint_tensors(straight[0] / last, 2), checkpoint_tensors(folder / last, 2)
    for name, tensors in expected.items():
        assert same_bits(got[name], tensors), name
    results = [json.loads((path / "result.json").read_text()) for path in (straight[0], folder)]
    for key in ("value", "validation", "best_batch", "batches", "updates", "sequences", "workers"):
        assert results[1][key] == results[0][key]
    batches = [record["batch"] for record in records(folder) if record["kind"] == "train"]
    assert batches == list(range(5, BATCHES + 1, 5))


ALONE = """
import os, sys
if os.environ["RANK"] == "1":
    sys.argv.append("optimizer.lrr=1")
from fptt_dist.cli import main
main()
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "train.batch_size=1",
            "train.batch_size=1 is the global batch, fewer sequences than the 2 workers: type train.batch_size=2",
        ),
        ("optimizer.lrr=1", "optimizer.lrr"),
    ],
)
def test_a_mistake_is_said_and_ends_it(tmp_path: Path, setting: str, message: str) -> None:
    folder = tmp_path / "run"
    with torchrun(tmp_path / "log", f"run.dir={folder}", setting) as launched:
        assert launched.end() != 0
        text = launched.text()
    said = [line for line in text.splitlines() if line.startswith("fptt-dist: ") and message in line]
    # torchrun ends the slower process when the faster one has left, maybe before it has said it too.
    assert sum("[rank 1] " in line for line in said) <= 1
    assert sum("[rank 1] " not in line for line in said) <= 1
    assert said
    assert "fptt_dist/cli" not in text, "a user's mistake shows no traceback of ours"
    assert "Unable to shutdown process" not in text
    assert not folder.exists()


def test_a_mistake_of_one_process_alone_does_not_keep_the_other(tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text(ALONE)
    with torchrun(tmp_path / "log", f"run.dir={tmp_path / 'run'}", command=[str(script)]) as launched:
        assert launched.end() != 0
        text = launched.text()
    assert "optimizer.lrr" in text
    assert "Unable to shutdown process" not in text, "the other process had to be killed, after 30 s"


def test_a_folder_that_is_occupied(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with torchrun(tmp_path / "log", f"run.dir={folder}") as launched:
        assert launched.end() != 0
        text = launched.text()
    assert f"fptt-dist: run.dir={folder} is not empty and holds no run: type run.dir=… for another folder" in text
    assert "Unable to shutdown process" not in text
    assert "fptt_dist/cli" not in text, "the other process shows a traceback"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
