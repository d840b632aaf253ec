"""What `fptt-dist doctor` finds: checked against this very installation, and with distributions taken away."""

import itertools
import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fptt_dist
from fptt_dist.cli.doctor import diagnosis

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def distribution(requirement: str) -> str:
    """The name that packages go by in metadata: "ruamel.yaml>=0.18" is ruamel-yaml."""
    return re.sub(r"[._-]+", "-", re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0]).lower()


def rows() -> dict[str, str]:
    found = diagnosis()
    assert all(isinstance(text, str) and text for row in found for text in row)
    assert len({name for name, _ in found}) == len(found), "no row comes twice"
    return dict(found)


def take_away(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_this_package_python_and_the_machine() -> None:
    found = rows()
    assert found["fptt_dist"] == fptt_dist.__version__
    assert found["python"] == f"{platform.python_version()} on {platform.platform()}"
    assert found["processor"].endswith(f"torch uses {torch.get_num_threads()} thread(s)")


def test_every_declared_dependency_with_its_version() -> None:
    found = rows()
    names = [distribution(requirement) for requirement in PROJECT["dependencies"]]
    assert {"torch", "numpy", "ruamel-yaml"} <= set(names)
    versions = {name: found.get(name) for name in names}
    assert versions == {name: metadata.version(name) for name in names}
    assert found["torch"] == torch.__version__


def test_extras_are_no_dependencies() -> None:
    found = rows()
    for requirements in PROJECT["optional-dependencies"].values():
        assert not found.keys() & {distribution(requirement) for requirement in requirements}


def test_devices_and_backends_are_this_machines() -> None:
    found = rows()
    assert ("GPU was found" in found["CUDA"] or found["CUDA"] == "none") == (not torch.cuda.is_available())
    assert ("gloo" in found["process group backends"]) == torch.distributed.is_gloo_available()
    assert ("nccl" in found["process group backends"]) == torch.distributed.is_nccl_available()
    assert (found["cuDNN"] == "none") == (not torch.backends.cudnn.is_available())


def test_a_missing_dependency_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch, "matplotlib")
    found = rows()
    assert found["matplotlib"] == "missing"
    assert found["numpy"] == metadata.version("numpy")


def test_extras_are_complete_or_say_what_installs_them(
    monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    extras = {
        extra: [distribution(requirement) for requirement in requirements]
        for extra, requirements in PROJECT["optional-dependencies"].items()
    }
    before = rows()
    take_away(monkeypatch, *itertools.chain(*extras.values()))
    after = rows()
    for extra, names in extras.items():
        with subtests.test(extra):
            held = [name for name in names if not any(True for _ in metadata.distributions(name=name))]
            assert (before[f"extra {extra}"] == "complete") == (held == [])
            missing, _, command = after[f"extra {extra}"].removeprefix("missing ").partition(": ")
            assert sorted(missing.split(", ")) == sorted(names)
            assert command == f"pip install -e '.[{extra}]'"


def test_one_missing_of_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch, "hypothesis")
    assert rows()["extra dev"] == "missing hypothesis: pip install -e '.[dev]'"


def test_where_the_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert rows()["data"] == "no folder data/ here"
    (tmp_path / "data").mkdir()
    assert rows()["data"] == str(tmp_path / "data")
