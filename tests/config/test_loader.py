"""Files: precedence, extends, packaged configurations, and unreadable ones."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fptt_dist.config import Adam, ConfigError
from fptt_dist.config.loading import loader
from fptt_dist.config.loading.loader import load

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def to_file(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> Path:
    folder = tmp_path / "package" / "configs"
    monkeypatch.setattr(loader, "PACKAGED", folder)
    write("package/configs/adding/base.yaml", "train: {max_epochs: 3}")
    write("package/configs/adding/long.yaml", "extends: base.yaml\ntask: {length: 500}")
    return folder


def failure(path: str | Path) -> str:
    try:
        load(path)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_default_extends_file_override(write: Write) -> None:
    write("base.yaml", "train: {max_epochs: 3, batch_size: 4}\nseed: 1\nfptt: {beta: 0.1}")
    write("own.yaml", "extends: base.yaml\nseed: 2\ntrain: {batch_size: 5}")
    config = load("own.yaml", {"seed": 3})
    assert (config.fptt.alpha, config.fptt.beta) == (0.5, 0.1)
    assert (config.train.max_epochs, config.train.batch_size, config.seed) == (3, 5, 3)


def test_the_later_of_several_wins_relative_to_the_file(write: Write) -> None:
    write("parts/a.yaml", "seed: 1\ntrain: {max_epochs: 1}")
    write("parts/b.yaml", "extends: a.yaml\nseed: 2")
    write("parts/sub/own.yaml", "extends: [../b.yaml, ../a.yaml]")
    assert load("parts/sub/own.yaml").seed == 1


def test_extends_in_a_circle(write: Write) -> None:
    write("a.yaml", "extends: b.yaml")
    write("b.yaml", "extends: ./a.yaml")
    assert failure("a.yaml") == "extends goes round in a circle: a.yaml -> b.yaml -> a.yaml"


def test_extends_needs_paths(write: Write) -> None:
    write("a.yaml", "seed: 1")
    said = "own.yaml:1: extends needs the path of a configuration, or a list of paths"
    texts = ("extends: 3", "extends:", "extends: [a.yaml, 1]", "extends: {a: b}", "extends: ''")
    assert {text: failure(write("own.yaml", text)) for text in texts} == dict.fromkeys(texts, said)


def test_extends_of_a_missing_file_names_the_line(write: Write) -> None:
    write("sub/own.yaml", "seed: 1\nextends: none.yaml")
    assert failure("sub/own.yaml").startswith("sub/own.yaml:2: sub/none.yaml: no such file")


def test_another_variant_drops_the_keys_of_the_extended_one(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    write("base.yaml", "optimizer: {lr: 0.003}\ntrain: {max_epochs: 1}")
    write("own.yaml", "extends: base.yaml\noptimizer: {name: sgd}")
    with caplog.at_level(logging.WARNING, "fptt_dist"):
        assert load("own.yaml").optimizer.lr == 0.1
    assert [record.getMessage() for record in caplog.records] == [
        "optimizer.name=sgd replaces adam: dropped optimizer.lr=0.003"
    ]


def test_an_empty_file_is_all_defaults(write: Write) -> None:
    for text in ("", "# a comment\n", "---\n", "{}"):
        config = load(write("a.yaml", text), {"train.max_epochs": 1})
        assert (config.optimizer, config.model_fields_set) == (Adam(), {"train"}), text


def test_a_file_is_a_mapping(write: Write) -> None:
    texts, said = ("- 1", "adam", "3"), "a.yaml: not a mapping of keys to values, such as seed: 1"
    assert {text: failure(write("a.yaml", text)) for text in texts} == dict.fromkeys(texts, said)


def test_yaml_errors_have_file_and_line(write: Write) -> None:
    write("a.yaml", "seed: 1\nseed: 2")
    assert failure("a.yaml") == "a.yaml:2: the key seed is given twice, first on line 1"


def test_a_folder(write: Write, tmp_path: Path) -> None:
    assert failure(tmp_path) == f"{tmp_path}: is a folder, not a file"
    (tmp_path / "config.yaml").touch()  # of a run
    hint = f"type {tmp_path}/config.yaml, the configuration of the run in it"
    assert failure(tmp_path) == f"{tmp_path}: is a folder, not a file: {hint}"


def test_not_utf8(write: Write) -> None:
    write("a.yaml", "").write_bytes(b"run: {dir: \xff}")
    assert failure("a.yaml") == "a.yaml: not UTF-8 text (byte 11)"


def test_a_byte_order_mark_is_no_harm(write: Write) -> None:
    assert load(write("a.yaml", "\ufeffseed: 4\ntrain: {max_epochs: 1}")).seed == 4


def test_a_file_that_cannot_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    write("a.yaml", "")
    monkeypatch.setattr(Path, "open", refuse)
    assert failure("a.yaml") == "a.yaml: cannot be read: Permission denied"


@pytest.mark.parametrize("special", ["/dev/zero", "/dev/random", "pipe"])
def test_what_may_have_no_end_is_not_read(special: str, write: Write) -> None:
    os.mkfifo("pipe")
    write("own.yaml", f"extends: {special}")
    assert failure("own.yaml") == failure(special)
    assert failure(special) == f"{special}: is a device or a pipe, not a regular file: type the path of a file"


def test_a_large_file_is_not_read(write: Write) -> None:
    write("large.yaml", "seed: 1\n" + "# 1234567\n" * 10**6)
    assert failure("large.yaml") == (
        "large.yaml: is larger than 256 KiB, so it is no file of settings: type the path of one"
    )


def test_extends_leads_to_a_hundred_files_at_most(write: Write) -> None:
    """Each file is short, and names the next one twice: thirty stand for a billion."""
    for i in range(30):
        write(f"{i}.yaml", f"extends: [{i + 1}.yaml, {i + 1}.yaml]")
    write("30.yaml", "seed: 3\ntrain: {max_epochs: 1}")
    assert failure("0.yaml") == "0.yaml: extends leads to more than 100 files: take some out"
    assert load("25.yaml").seed == 3


def test_a_path_with_nul(write: Write) -> None:
    write("own.yaml", 'extends: "a\\0b"')
    for path, name in (("own.yaml", "own.yaml:1: extends"), ("a\0b", "CONFIG")):
        assert failure(path) == f'{name}: "a\\u0000b" has a NUL in it, which no path may have: type a path without it'


def test_a_missing_file_without_packaged_ones(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "PACKAGED", Path("nowhere"))
    assert failure("a.yaml") == "a.yaml: no such file"


def test_packaged_configurations(packaged: Path) -> None:
    for name in ("adding/long", "adding/long.yaml", "configs/adding/long", "configs/adding/long.yaml"):
        config = load(name)
        assert (config.task.sequence_length, config.train.max_epochs) == (500, 3), name


def test_a_file_may_extend_a_packaged_one(packaged: Path, write: Write) -> None:
    write("own/own.yaml", "extends: configs/adding/base.yaml")
    assert load("own/own.yaml").train.max_epochs == 3


def test_a_file_wins_over_a_packaged_one(packaged: Path, write: Write) -> None:
    write("adding/base.yaml", "train: {max_epochs: 9}")
    assert load("adding/base.yaml").train.max_epochs == 9


def test_a_missing_file_lists_the_packaged_ones(packaged: Path) -> None:
    assert failure("adding/lnog.yaml") == (
        "adding/lnog.yaml: no such file; packaged: adding/base.yaml, adding/long.yaml; "
        "did you mean adding/long.yaml or adding/base.yaml?"
    )


def test_an_absolute_path_is_not_looked_up_in_the_package(packaged: Path, tmp_path: Path) -> None:
    assert failure(tmp_path / "adding" / "base.yaml").startswith(f"{tmp_path / 'adding' / 'base.yaml'}: no such file")
