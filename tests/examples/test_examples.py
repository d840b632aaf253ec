"""Every example as a user runs it: a program of its own, whose result a broken optimizer would not reach."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent
# Lightning's own: where SLURM is installed, of torch's pytree, and where a run resumes in its folder.
LIGHTNING = (
    "ignore:The `srun` command is available",
    "ignore:`isinstance(treespec, LeafSpec)` is deprecated",
    "ignore:Checkpoint directory",
)
pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    """Return what a program prints on both streams; it must end well."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def python(example: str, *options: str | Path, folder: Path, allowed: tuple[str, ...] = ()) -> str:
    """An example in which every warning is an error but those `allowed`."""
    filters = [word for allow in allowed for word in ("-W", allow)]
    return run(sys.executable, "-W", "error", *filters, EXAMPLES / example, *options, folder=folder)


def figures(pattern: str, output: str) -> list[float]:
    """The groups of the one place that matches, as numbers."""
    found = list(re.finditer(pattern, output, flags=re.MULTILINE))
    assert len(found) == 1, output
    return [float(group) for group in found[0].groups()]


def test_plain_loop(tmp_path: Path) -> None:
    output = python("plain_loop.py", folder=tmp_path)
    error, mean = figures(r"^test error ([\d.]+), always predicting 1: ([\d.]+)$", output)
    assert error < mean / 2


def test_own_cell(tmp_path: Path) -> None:
    (accuracy,) = figures(
        r"^accuracy ([\d.]+)% after 100 steps, guessing: 12.5%$", python("own_cell.py", folder=tmp_path)
    )
    assert accuracy > 90.0


@pytest.mark.clients
def test_spiking(tmp_path: Path) -> None:
    output = python("spiking.py", folder=tmp_path)
    accuracy, bound = figures(r"^accuracy ([\d.]+)%, guessing: 20.0%, who knows the rates: ([\d.]+)%$", output)
    assert 55.0 < accuracy <= bound + 3.0  # nobody beats the bound but by the luck of 1000 draws


@pytest.mark.clients
def test_time_series(tmp_path: Path) -> None:
    output = python("time_series.py", folder=tmp_path)
    (persistence,) = figures(r"^persistence +[\d.]+ +([\d.]+)$", output)
    (seasonal,) = figures(r"^seasonal naive, 11 years +[\d.]+ +([\d.]+)$", output)
    (fptt,) = figures(r"^LSTM, FPTT, K = 8 +[\d.]+ +([\d.]+) ", output)
    assert persistence == pytest.approx(_persistence_of_sunspots(), abs=0.006)
    assert fptt < 0.8 * min(persistence, seasonal)


def _persistence_of_sunspots() -> float:
    """By hand: root mean squared difference to the year before, 1950 to 2008."""
    from statsmodels.datasets import sunspots

    table: Any = sunspots.load_pandas().data
    values = table.set_index("YEAR")["SUNACTIVITY"]
    test = [(values[year] - values[year - 1]) ** 2 for year in range(1950, 2009)]
    return (sum(test) / len(test)) ** 0.5


BITS = r"^held-out bits per character: ([\d.]+) \(unigrams ([\d.]+), bigrams ([\d.]+), trigrams ([\d.]+)\)$"


def test_char_lm(tmp_path: Path) -> None:
    bits, unigrams, bigrams, trigrams = figures(BITS, python("char_lm.py", folder=tmp_path))
    assert bits < bigrams - 0.5
    assert trigrams < bigrams < unigrams


def test_char_lm_on_a_text_of_ones_own(tmp_path: Path) -> None:
    """Lines of a text whose characters are certain given the 25 before, but not given the two before."""
    text = tmp_path / "my_book.txt"
    text.write_text("the owl saw a cat, a cat saw the æ\n" * 600, encoding="utf-8")
    output = python("char_lm.py", text, "--steps", "60", folder=tmp_path)
    bits, unigrams, bigrams, trigrams = figures(BITS, output)
    # The entropies by hand, from the line repeated for ever.
    line = "the owl saw a cat, a cat saw the æ\n"
    for n, found in enumerate((unigrams, bigrams, trigrams), 1):
        assert found == pytest.approx(_entropy(line, n), abs=0.02)
    assert bits < trigrams / 2
    assert set(output.split("\n\n", 1)[1]) <= set(line)


def _entropy(line: str, n: int) -> float:
    """Bits of a character after n − 1 others in a line repeated for ever."""
    from collections import Counter
    from math import log2

    around = line + line
    grams = Counter(around[i : i + n] for i in range(len(line)))
    contexts = Counter(around[i : i + n - 1] for i in range(len(line)))
    return -sum(count * log2(count / contexts[gram[:-1]]) for gram, count in grams.items()) / len(line)


def test_char_lm_says_what_is_wrong_with_a_text(tmp_path: Path) -> None:
    short, coded = tmp_path / "short.txt", tmp_path / "latin1.txt"
    short.write_text("too short")
    coded.write_bytes("æ".encode("latin-1") * 10_000)
    for text, message in (
        (short, f"{short} has 9 characters, expected at least"),
        (coded, f"{coded} cannot be read as UTF-8"),
    ):
        with patch.object(sys, "argv", ["char_lm.py", str(text)]), pytest.raises(SystemExit, match=re.escape(message)):
            runpy.run_path(str(EXAMPLES / "char_lm.py"), run_name="__main__")


ACCELERATE = r"^test error ([\d.]+) on (\d) process\(es\), ([\d.e+-]+) apart, always predicting 1: ([\d.]+)$"


@pytest.mark.clients
def test_accelerate_on_one_process(tmp_path: Path) -> None:
    error, processes, _, mean = figures(ACCELERATE, python("accelerate_loop.py", folder=tmp_path))
    assert processes == 1
    assert error < mean / 2


@pytest.mark.clients
def test_accelerate_on_two_processes(tmp_path: Path) -> None:
    """They learn together, and their weights, W̄ and λ are equal bit for bit."""
    launch = ("torchrun", "--standalone", "--nproc-per-node", "2")
    error, processes, apart, mean = figures(ACCELERATE, run(*launch, EXAMPLES / "accelerate_loop.py", folder=tmp_path))
    assert processes == 2
    assert apart == 0.0
    assert error < mean / 2


def lightning(folder: Path, *options: str | Path) -> tuple[str, dict[str, Any]]:
    """Return what the example prints and the checkpoint it leaves; errors are compared where it has them."""
    words = ("--folder", folder, *options)
    output = python("lightning_module.py", *words, folder=folder.parent, allowed=LIGHTNING)
    return output, torch.load(folder / "last.ckpt", weights_only=False)


@pytest.mark.clients
def test_lightning_learns_and_resumes_exactly(tmp_path: Path) -> None:
    """Six epochs in one go, and one and five: the same weights, moments, W̄, dual and learning rate."""
    output, whole = lightning(tmp_path / "whole")
    error, updates, mean = figures(
        r"^validation error ([\d.]+) after (\d+) updates, always predicting the mean: ([\d.]+)$", output
    )
    assert updates == 6 * 50 * 10
    assert error < mean / 2
    _, first = lightning(tmp_path / "parts", "--epochs", "1")
    _, second = lightning(tmp_path / "parts", "--seed", "5", "--resume", tmp_path / "parts" / "last.ckpt")
    assert {"center", "scaled_dual"} < set(whole["optimizer_states"][0]["state"][0])
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(second[part], whole[part], rtol=0.0, atol=0.0)
    assert not torch.equal(first["state_dict"]["readout.weight"], whole["state_dict"]["readout.weight"])


def test_every_example_is_described_and_tested() -> None:
    """Each file has a section and a command in the pages, and its name in a test."""
    page, tracking = ((ROOT / "docs" / name).read_text("utf-8") for name in ("examples.md", "callbacks.md"))
    tests = [(ROOT / "tests" / folder).rglob("*.py") for folder in ("examples", "clients", "training")]
    tested = "".join(path.read_text("utf-8") for paths in tests for path in paths)
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert len(names) == 10
    headings = "".join(re.findall(r"^## .*$", page, flags=re.MULTILINE))
    assert sorted(re.findall(r"`examples/(\w+\.py)`", headings)) == names
    for name in names:
        assert name.removesuffix(".py") in tested
        assert re.search(rf"^(python|torchrun|fptt-dist) .*examples/{name}", page + tracking, flags=re.MULTILINE), name
