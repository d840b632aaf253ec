"""What an archive holds, and that the wheel works in an environment that has nothing else."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from fptt_dist import __version__

ROOT = Path(__file__).parents[1]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
SECONDS = 240.0
PARTS = {"configs": "*.yaml", "launchers": "*.py", "slurm": "*.sbatch"}  # folders that links bring into the package

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of this checkout, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def source(archives: Path) -> list[str]:
    """The files in the source archive, without the folder that they are all in."""
    (path,) = archives.glob("*.tar.gz")
    assert path.name == f"fptt_dist-{__version__}.tar.gz"
    assert path.stat().st_size < 10 * 2**20
    with tarfile.open(path) as archive:
        names = [member.name for member in archive.getmembers() if not member.isdir()]
    top = path.name.removesuffix(".tar.gz") + "/"
    assert all(name.startswith(top) for name in names)
    return [name.removeprefix(top) for name in names]


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    (path,) = archives.glob("*.whl")
    assert path.name == f"fptt_dist-{__version__}-py3-none-any.whl"
    assert path.stat().st_size < 5 * 2**20
    return path


class Installed:
    """An environment with the wheel, what it needs, and nothing else.

    Args:
        home: the environment's folder.
        elsewhere: an empty folder, where its programs run.
    """

    def __init__(self, home: Path, elsewhere: Path) -> None:
        self.bin = home / SCRIPTS
        self.elsewhere = elsewhere

    def run(self, program: str, *words: str) -> str:
        """What the program wrote; it must have ended with 0."""
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.bin / program, *words],
            cwd=self.elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home, elsewhere = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=False)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(home / SCRIPTS / "python"),
        "install",
        "--quiet",
        "--no-compile",
    ]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True, timeout=SECONDS)
    return Installed(home, elsewhere)


def files(folder: Path, pattern: str) -> set[str]:
    """The files of the checkout below `folder`, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern)}


def below(names: list[str], folder: str) -> set[str]:
    return {name.removeprefix(folder + "/") for name in names if name.startswith(folder + "/")}


def test_the_source_archive_holds_each_file_once_and_where_it_belongs(source: list[str]) -> None:
    assert len(source) == len(set(source))
    for part, pattern in PARTS.items():
        expected = files(ROOT / part, pattern)
        assert expected
        assert expected <= below(source, f"fptt_dist/{part}"), part
        assert expected <= below(source, part), part
    for name in ("pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE", "tests/conftest.py"):
        assert name in source
    unwanted = (".venv/", "runs/", "site/", "data/", ".git/", ".hypothesis/", "dist/", "build/")
    assert not [name for name in source if name.startswith(unwanted) or "__pycache__" in name]


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (information,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(information).decode()
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in names} == {"fptt_dist", f"fptt_dist-{__version__}.dist-info"}
    packaged = below(names, "fptt_dist")
    assert {"py.typed", "__main__.py"} <= packaged
    for part, pattern in PARTS.items():
        assert files(ROOT / part, pattern) == {
            name for name in below(names, f"fptt_dist/{part}") if Path(name).match(pattern)
        }
    for folder in ("algorithm", "cli", "config", "models", "parallel", "reporting", "tasks", "training"):
        assert files(ROOT / "fptt_dist" / folder, "*.py") <= below(names, f"fptt_dist/{folder}"), folder
    templates = files(ROOT / "fptt_dist", "*.jinja")
    assert templates <= packaged
    unwanted = r"(^|/)(tests|docs|examples|benchmarks|__pycache__)/|^(fptt_dist/)?runs/"
    assert not [name for name in names if re.search(unwanted, name)]
    assert [name for name in names if name.endswith("/licenses/LICENSE")]
    assert re.search(rf"^Version: {re.escape(__version__)}$", metadata, re.MULTILINE)
    assert re.search(r"^License-Expression: MIT$", metadata, re.MULTILINE)


def test_the_version_is_the_same_everywhere_and_doctor_names_what_is_not_installed(installed: Installed) -> None:
    assert installed.run("fptt-dist", "--version").split() == ["fptt-dist", __version__]
    lines = installed.run("fptt-dist", "doctor").splitlines()
    said = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))  # the others continue a row
    assert said["fptt_dist"].strip() == __version__
    program = "import importlib.metadata as m, fptt_dist; print(m.version('fptt-dist'), fptt_dist.__file__)"
    version, file = installed.run("python", "-c", program).split()
    assert version == __version__
    assert Path(file).is_relative_to(installed.bin.parent)
    (ray,) = (line for line in lines if line.startswith("extra ray"))
    assert "pip install -e '.[ray]'" in ray
    assert not [line for line in lines if "missing" in line and not line.startswith(("extra", " "))]


def test_train_and_report_far_from_the_checkout(installed: Installed) -> None:
    shorter = ("train.max_batches=5", "task.length=20", "task.validation=50", "task.test=50")
    said = installed.run("fptt-dist", "train", "add_task", *shorter, "run.dir=mine")
    assert said.splitlines()[-1] == "everything is in mine"
    run = installed.elsewhere / "mine"
    assert {"config.yaml", "metrics.jsonl", "result.json", "tensorboard"} <= {path.name for path in run.iterdir()}
    said = installed.run("fptt-dist", "report", "mine")
    path = installed.elsewhere / said.split()[-1]
    assert path.is_file()
    assert path.stat().st_size > 1000
