"""Configuration files: YAML 1.2, one may extend others."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loading.merge import Layer, merge, validated
from fptt_dist.config.loading.overrides import override_layer
from fptt_dist.config.loading.suggest import did_you_mean
from fptt_dist.config.loading.text import read_settings
from fptt_dist.config.loading.yaml import parse
from fptt_dist.config.rules import Config
from fptt_dist.config.schema.paths import refuse_remote

PACKAGED = Path(__file__).parents[2] / "configs"
"""The folder of the configurations that come with the package."""
OTHERS = ("clusters", "paper", "presets", "sweeps")
"""Its folders of files that describe something else than a run, or are told apart from the others: the paper's rows."""

MAX_FILES = 100
"""That one configuration extends; each is counted as often as it is named."""


def load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Load a configuration with `overrides` set.

    An override wins over the source, the source over the files it extends, and these over the defaults.

    Args:
        source: path of a file, name of a packaged one, or what a file says as a mapping: sections one inside another,
            or dotted keys as on the command line; `extends` is relative to the current folder.
        overrides: dotted keys with their values.

    Raises:
        ConfigError: a file that cannot be read, or all problems of the values, one per line, with file and line.
    """
    layer = _mapping(source) if isinstance(source, Mapping) else _file(_find(Path(source), ""), (), [])
    return validated(merge(layer, override_layer(overrides or {})), Config)


def _mapping(source: Mapping[str, Any]) -> Layer:
    """Return the values of a mapping over those of the files it extends."""
    own = override_layer({key: value for key, value in source.items() if key != "extends"}, "key")
    return merge(_extended(source["extends"], "key extends", Path(), (), []), own) if "extends" in source else own


def _file(path: Path, parents: tuple[Path, ...], read: list[Path]) -> Layer:
    """Return the values of a file over those of the files it extends.

    `parents` are the files that led to it, `read` all those read so far, to which it is added.
    """
    chain = (*parents, path)
    read.append(path)
    if len(read) > MAX_FILES:
        raise ConfigError(f"{chain[0]}: extends leads to more than {MAX_FILES} files: take some out")
    if path.resolve() in (parent.resolve() for parent in parents):
        raise ConfigError(f"extends goes round in a circle: {' -> '.join(str(link) for link in chain)}")
    own = read_mapping(path)
    values, where = own.values, own.where
    if "extends" not in values:
        return Layer(values, where)
    base = _extended(values.pop("extends"), where[("extends",)], path.parent, chain, read)
    return merge(base, Layer(values, where))


def _extended(names: Any, named_at: str, folder: Path, chain: tuple[Path, ...], read: list[Path]) -> Layer:
    """Return the values of the files that `extends` names, relative to `folder`, later ones over earlier ones."""
    layer = Layer({})
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{named_at}: extends needs the path of a configuration, or a list of paths")
        layer = merge(layer, _file(_find(folder / name, name, named_at), chain, read))
    return layer


def packaged() -> list[str]:
    """Return the configurations of runs that come with the package, as paths within its folder, but for the paper's."""
    files = [file.relative_to(PACKAGED) for file in PACKAGED.rglob("*.yaml")]
    return sorted(file.as_posix() for file in files if file.parts[0] not in OTHERS)


def packaged_rows() -> list[str]:
    """Return the configurations of the paper's rows, as paths within the package's folder."""
    files = (PACKAGED / "paper").glob("*.yaml")
    return sorted(file.relative_to(PACKAGED).as_posix() for file in files if file.name != "tables.yaml")


def read_mapping(path: Path) -> Layer:
    """Read the keys and values of a file, each key with its file and line; an empty file gives none.

    Raises ConfigError as `read_settings`, and for a file that is no YAML or no mapping.
    """
    values, lines = parse(read_settings(path), lambda line: f"{path}:{line}")
    if values is None:
        return Layer({})
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a mapping of keys to values, such as seed: 1")
    return Layer(values, {key: f"{path}:{line}" for key, line in lines.items()})


def _find(path: Path, name: str, named_at: str = "") -> Path:
    """Return `path` if it exists, else the packaged configuration `name` (by default `path`).

    `named_at` is the file and line that asks for it. Raises ConfigError, with the packaged names, for neither.
    """
    refuse_remote(f"{named_at}: extends" if named_at else "CONFIG", name or path)
    if os.path.exists(path):
        return path
    wanted = Path(name or path)
    if not wanted.is_absolute():
        inner = wanted.relative_to("configs") if wanted.parts[:1] == ("configs",) else wanted
        found = PACKAGED / (inner if inner.suffix == ".yaml" else f"{inner}.yaml")
        if os.path.isfile(found):
            return found
    names, rows = packaged(), packaged_rows()
    paper = f", and the paper's {len(rows)} in paper/" if rows else ""
    meant = did_you_mean(str(wanted), [*names, *rows])
    known = f"; packaged: {', '.join(names)}{paper}{meant}" if names else ""
    prefix = f"{named_at}: " if named_at else ""
    raise ConfigError(f"{prefix}{path}: no such file{known}")
