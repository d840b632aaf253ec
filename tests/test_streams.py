"""A run outlives its output: closed pipes, full disks, closed descriptors, a terminal that is gone; results do not."""

import json
import os
import pty
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fptt_dist.config import dump
from fptt_dist.streams import printable
from fptt_dist.training.run import train
from tests.training.helpers import assert_same_run, tiny

ROOT = Path(__file__).parents[1]
FPTT = shlex.join([sys.executable, "-m", "fptt_dist"])
BATCHES = 8
OVERRIDES = {"evaluate.every_batches": 1}
LOST = ("2>&1 | head -n 1", "> /dev/full 2>&-", "<&- >&- 2> /dev/full")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, with the exit code of the first program of a pipe."""
    script = f"set -o pipefail; cd {shlex.quote(str(ROOT))}; {line}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that could print."""
    run = tmp_path_factory.mktemp("streams") / "run"
    train(tiny(run, OVERRIDES, batches=BATCHES))
    return run


def written(tmp_path: Path) -> tuple[Path, str]:
    """The folder of a run like the straight one, and the command that trains it."""
    config = tmp_path / "config.yaml"
    config.write_text(dump(tiny(tmp_path / "run", OVERRIDES, batches=BATCHES)))
    return tmp_path / "run", f"{FPTT} train {shlex.quote(str(config))}"


@pytest.mark.slow
@pytest.mark.parametrize("where", LOST)
def test_a_run_that_cannot_print_is_the_same(where: str, straight: Path, tmp_path: Path) -> None:
    run, command = written(tmp_path)
    done = shell(f"{command} {where}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == ("head" in where)
    assert_same_run(straight, run)
    files = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert not [path for path in files if "test mse " in path.read_text()]  # as it would be at a descriptor of theirs


@pytest.mark.slow
def test_a_terminal_that_is_gone(straight: Path, tmp_path: Path) -> None:
    """Its progress line too, and in a session that the end of the terminal does not signal."""
    run, command = written(tmp_path)
    master, terminal = pty.openpty()
    words = shlex.split(command)
    with subprocess.Popen(words, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while b"adding fptt" not in shown:
            shown += os.read(master, 4096)
        os.close(master)
        assert process.wait(120) == 0
    assert_same_run(straight, run)


@pytest.mark.slow
def test_what_is_printed_as_the_result_is_not_lost_in_silence(straight: Path) -> None:
    command = f"{FPTT} evaluate {shlex.quote(str(straight))}"
    value = json.loads((straight / "result.json").read_text())["value"]
    assert json.loads(shell(command).stdout)["test"] == value
    for where, number, why in (
        ("> /dev/full", 28, "No space left on device"),
        (">&-", 9, "Bad file descriptor"),
    ):
        done = shell(f"{command} {where}")
        assert (done.returncode, done.stderr) == (1, f"fptt-dist: [Errno {number}] {why}: 'standard output'\n")
    done = shell(f"{command} | true")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    done = shell(f"{FPTT} evaluate nothing 2> /dev/full")
    assert (done.returncode, done.stdout) == (2, "")


PROGRAM = """
import os, sys, types
package = sys.modules["fptt_dist"] = types.ModuleType("fptt_dist")  # without what it imports
package.__path__ = ["fptt_dist"]
from fptt_dist.streams import printable, protect
protect()
if os.get_blocking(1):
    for part in range(3):
        print("a", part, flush=True)
    os.write(1, b"of a library")  # raises nothing either
    print("not text: \\udcff", file=sys.stderr)
else:
    print("x" * 200_000, end="", flush=True)
"""


def program(*options: str, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *options, "-c", PROGRAM], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.parametrize("options", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_a_stream_whose_reader_has_ended(options: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with program(*options, stdout=writer) as process:
        os.close(writer)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"not text: \\udcff\n")


@pytest.mark.parametrize("options", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_a_pipe_that_does_not_block_gets_everything(options: tuple[str, ...]) -> None:
    """Another program that has the same pipe may have made it so; Python gives up at once when it is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with program(*options, stdout=writer) as process:
        os.close(writer)
        time.sleep(0.1)
        got = b"".join(iter(lambda: os.read(reader, 1 << 16), b""))
        assert process.wait(60) == 0
    os.close(reader)
    assert got == b"x" * 200_000


def test_what_somebody_else_chose_cannot_move_the_cursor() -> None:
    assert printable("näme\n\t文 ±") == "näme\n\t文 ±"
    assert printable("\x1b[2J\r\x07\x9b1m\x7f") == r"\x1b[2J\r\x07\x9b1m\x7f"
    assert printable(os.fsdecode(b"run\xff") + "\u202etxt.exe") == r"run\udcff\u202etxt.exe"
