"""No key that holds a path takes the address of a remote store, which would become a local folder."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import ValidationError

from fptt_dist.config import Config, ConfigError, dump, load, parse_overrides
from fptt_dist.config.schema.cluster import Cluster, load_cluster
from fptt_dist.config.schema.paths import LocalPath, remote_path
from fptt_dist.config.schema.pretrained import Pretrained
from fptt_dist.config.schema.section import Section
from fptt_dist.config.schema.sweep import Sweep, load_sweep
from tests.config.test_schema import sections

SCHEMAS = (Config, Sweep, Cluster)
PATHS = {  # with what else must be given for the key to be there
    "data.root": {},
    "model.init_from": {},
    "model.layer": {},
    "model.network": {},
    "parallel.deepspeed_config": {"parallel.strategy": "deepspeed"},
    "run.dir": {},
    "task.name": {"task.length": 5},
    "task.text_dir": {"task.name": "language"},
    "task.train": {"task.name": "arrays", "task.length": 9},
    **{f"task.{part}": {"task.name": "arrays", "task.length": 9, "task.train": "x"} for part in ("validation", "test")},
}
NO_PATHS = {
    *("Cluster.partition", "Cluster.account", "Cluster.qos", "Cluster.constraint", "Cluster.time"),
    *("Cluster.setup", "Cluster.sbatch", "Cluster.srun", "Cluster.python"),  # commands and their options
    *(f"ArraysTask.{name}_column" for name in ("series", "time", "split")),
    *(f"ArraysTask.{name}" for name in ("target_columns", "feature_columns", "monitor")),
    *("UserTask.options", "UserLayer.options", "WholeNetwork.options"),  # for the user's class
    *("UserTask.monitor", "GivenTask.name"),
    "Logging.wandb",
    "Sweep.space",  # its values are checked as the keys of a run that they are
}
(CHECK,) = get_args(LocalPath)[1:]


def kinds(annotation: Any) -> set[Any]:
    """The types an annotation is made of, but for the values of Literal."""
    if get_origin(annotation) in (Union, UnionType, tuple, dict, list):
        return {each for part in get_args(annotation) for each in kinds(part)}
    if get_origin(annotation) not in (None, Literal):  # Annotated
        return {*kinds(get_args(annotation)[0]), *get_args(annotation)[1:]}
    return set() if get_origin(annotation) is Literal else {annotation}


def keys(model: type[Section], checked: bool) -> set[str]:
    """The keys of a section that hold text, with or without the check."""
    found = {}
    for name, field in model.model_fields.items():
        parts = kinds(field.annotation) | {mark for mark in field.metadata if mark == CHECK}
        if parts & {str, Path, Any}:
            found[f"{model.__name__}.{name}"] = CHECK in parts
    return {name for name, has in found.items() if has == checked}


def test_every_key_of_text_is_a_path_or_known_to_be_none() -> None:
    models = [model for schema in SCHEMAS for model in sections(schema)]
    networks = [model.__name__ for model in models if issubclass(model, Pretrained)]
    names = {f"{network}.{key}" for network in networks for key in ("init_names", "freeze")}  # of parameters
    assert {key for model in models for key in keys(model, False)} == NO_PATHS | names
    checked = {key for model in models for key in keys(model, True)}
    assert checked == {
        "Data.root",
        "UserLayer.layer",
        "WholeNetwork.network",
        "UserTask.name",
        "DeepspeedParallel.deepspeed_config",
        "Run.dir",
        "LanguageTask.text_dir",
        *(f"ArraysTask.{name}" for name in ("train", "validation", "test", "metrics")),
        "UserTask.metrics",
        *(f"{network}.init_from" for network in networks),
    } | {"Sweep.config"}


REMOTE = (
    *("s3://bucket/x", "gs://b", "hdfs://host:9000/x", "memory://", "http://host/x", "https://host", "file:///x"),
    *("S3://B/x", "abfss://c@a.dfs.core.windows.net/x", "git+ssh://host/x", "s3:/bucket/x", "az:/"),
)
LOCAL = ("", "x", "/x", "./s3", "s3", "s3:bucket", "a b:c", "C:/x", "C:\\x", "1e5/no: ü", "x/s3://y", "~", "é://x")


def test_remote_and_local() -> None:
    for value in REMOTE:
        for each in (value, Path(value)):
            assert str(remote_path(each)).endswith(f": type a path without {value.partition(':')[0]}://"), each
    assert {value: (remote_path(value), remote_path(Path(value))) for value in LOCAL} == dict.fromkeys(
        LOCAL, (None, None)
    )


def test_nul(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text('run:\n  dir: "a\\0b"')
    with pytest.raises(ConfigError) as caught:
        load("a.yaml", {"train.max_epochs": 1})
    assert str(caught.value) == (
        'run.dir: "a\\u0000b" has a NUL in it, which no path may have: type a path without it (a.yaml:2)'
    )
    for read in (load, load_sweep):
        with pytest.raises(ConfigError, match="has a NUL in it"):
            read(Path("a\0b"))


def test_a_remote_path_wherever_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key, more in PATHS.items():
        value = "s3://bucket/cell.py:Net" if key in ("model.layer", "model.network", "task.name") else "s3://bucket/x"
        said = f'{key}: "{value}" is a remote path, and only local ones are supported (a mounted file system is one): '
        said += "type a path without s3://"
        section, name = key.split(".")
        values = {section: {name: value}, "train": {"max_epochs": 1}}
        text = [f"{section}:", f"  {name}: {value}"]
        for other, given in more.items():
            values[section][other.split(".")[1]] = given
            text.append(f"  {other.split('.')[1]}: {given}")

        with pytest.raises(ConfigError) as caught:
            load(
                "add_task", parse_overrides([*(f"{other}={given}" for other, given in more.items()), f"{key}={value}"])
            )
        assert str(caught.value) == f'{said} (override {key}="{value}")'

        Path("base.yaml").write_text("\n".join(text))
        Path("top.yaml").write_text("extends: base.yaml\ntrain: {max_epochs: 1}\n")
        for file in ("base.yaml", "top.yaml"):
            with pytest.raises(ConfigError) as caught:
                load(file, {"train.max_epochs": 1})
            assert str(caught.value) == f"{said} (base.yaml:2)"

        with pytest.raises(ValidationError, match="is a remote path"):
            Config.model_validate(values)


def test_files_of_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = " is a remote path, and only local ones are supported (a mounted file system is one): type a path without "
    Path("a.yaml").write_text("\nextends: [add_task, gs://b/base.yaml]\n")
    Path("sweep.yaml").write_text("config: s3://b/x.yaml\nspace: {fptt.alpha: {grid: [0, 1]}}\n")
    cases = {
        'CONFIG: "s3:/b/x.yaml"': lambda: load(Path("s3://b/x.yaml")),
        'a.yaml:2: extends: "gs://b/base.yaml"': lambda: load("a.yaml"),
        'SWEEP: "s3:/b/x.yaml"': lambda: load_sweep(Path("s3://b/x.yaml")),
        'config: "s3://b/x.yaml"': lambda: load_sweep(Path("sweep.yaml")),
        '--cluster: "s3:/b/x.yaml"': lambda: load_cluster(Path("s3://b/x.yaml"), {}),
    }
    for start, read in cases.items():
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(caught.value).startswith(f"{start}{said}")


def test_a_path_is_still_what_it_was(tmp_path: Path) -> None:
    config = load("add_task", {"run.dir": "/mnt/s3/x", "data.root": "../1e5/no: ü", "model.layer": "/a/c.py:Net"})
    (tmp_path / "shown.yaml").write_text(dump(config))
    assert load(tmp_path / "shown.yaml") == config
    with pytest.raises(ConfigError, match=r'^run\.dir: "" is not allowed; allowed: text or null'):
        load("add_task", {"run.dir": ""})
