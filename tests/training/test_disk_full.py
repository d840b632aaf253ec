"""A disk that is full: one message, exit code 1, and the earlier checkpoints as they were."""

import subprocess
import sys
from pathlib import Path

import pytest

from fptt_dist.config import dump
from fptt_dist.training.checkpoint.store import validate
from fptt_dist.training.run import train
from tests.training.helpers import assert_same_checkpoint, checkpoints, resumed, steps, tiny, train_until

# The largest file that may be written; SIGXFSZ is ignored, so that the write fails as on a full disk.
DRIVER = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from fptt_dist.cli import main
main()
"""


def train_with_limit(limit: int, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(limit), "train", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    overrides = {"model.hidden": 16, "checkpoint.every_batches": 3, "logging.every_batches": 100}
    train(tiny(tmp_path / "straight", overrides, batches=6))
    parts = tiny(tmp_path / "parts", overrides, batches=6)
    train_until(parts, 3)
    config = tmp_path / "config.yaml"
    config.write_text(dump(resumed(parts)))
    done = train_with_limit(9000, config)  # enough for the model, and too little for the optimizer
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "step-00000005 could not be written, earlier ones are untouched" in done.stderr
    assert "File too large" in done.stderr
    assert steps(tmp_path / "parts") == [3]
    assert validate(checkpoints(tmp_path / "parts")[-1]) is None
    train(resumed(parts))
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "parts")


def test_a_checkpoint_folder_that_is_a_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(run, batches=2)
    train_until(config, 1)
    earlier = checkpoints(run)[-1]
    (run / "checkpoints" / "step-00000002.tmp").write_text("in the way")
    with pytest.raises(OSError, match=r"step-00000002 could not be written, earlier ones are untouched"):
        train(resumed(config))
    assert validate(earlier) is None


@pytest.mark.slow
def test_a_disk_too_full_to_start(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump(tiny(tmp_path / "run", batches=2)))
    done = train_with_limit(100, config)
    assert done.returncode == 1
    run = tmp_path / "run"
    assert done.stderr == (
        f"fptt-dist: {run / 'versions.json'} could not be written: File too large: free space there (df -h {run}), or "
        "raise your quota\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_is_full_of_records(tensorboard: bool, tmp_path: Path) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    overrides = {
        "logging.tensorboard": tensorboard,
        "model.hidden": 2,
        "evaluate.every_batches": 50,
        "checkpoint.every_batches": 50,
    }
    config.write_text(dump(tiny(run, overrides, batches=200)))
    done = train_with_limit(60_000, config)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]  # and no traceback of the thread that writes
    file = run / ("tensorboard" if tensorboard else "metrics.jsonl")
    assert told == (
        f"fptt-dist: {file} could not be written: File too large: free space there (df -h {run}), or raise your quota"
    )
    assert "Traceback" not in done.stderr
    assert validate(checkpoints(run)[-1]) is None
