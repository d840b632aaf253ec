"""Configuration of a sweep: its runs, how they are chosen and stopped, and the resources of each."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loading.loader import PACKAGED, read_mapping
from fptt_dist.config.loading.merge import Layer, merge, validated
from fptt_dist.config.loading.overrides import override_layer
from fptt_dist.config.loading.suggest import did_you_mean
from fptt_dist.config.schema.paths import LocalPath, refuse_remote
from fptt_dist.config.schema.section import Conflict, Section, Variants, refuse
from fptt_dist.config.values import show

PREFIX = "sweep."
"""Beginning of an override of the sweep's own keys; others are keys of every run's configuration."""


class GridSearch(Section):
    """Every combination of the lists."""

    name: Literal["grid"] = Field(default="grid", description="how the runs are chosen")


class RandomSearch(Section):
    """Drawn at random, each at every combination of the lists in {grid: …}."""

    name: Literal["random"] = Field(default="random", description="how the runs are chosen")
    trials: int = Field(default=16, ge=1, description="points to draw")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the draws")


class OptunaSearch(Section):
    """Chosen by Optuna from what earlier runs gave (tree-structured Parzen estimator)."""

    name: Literal["optuna"] = Field(default="optuna", description="how the runs are chosen")
    trials: int = Field(default=16, ge=1, description="points to try")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the choice")
    objectives: tuple[Literal["quality", "seconds", "bytes_sent"], ...] = Field(
        default=("quality",), strict=False, min_length=1, description="what to improve: quality, seconds, bytes_sent"
    )


Search = Annotated[GridSearch | RandomSearch | OptunaSearch, Variants("name")]


class RunAll(Section):
    """Every run goes to its end."""

    name: Literal["none"] = Field(default="none", description="which runs are stopped early")


class Asha(Section):
    """After `grace` · `reduction`^i batches the best 1/`reduction` continue (successive halving, Li 2020)."""

    name: Literal["asha"] = Field(default="asha", description="which runs are stopped early")
    grace: int | None = Field(default=None, ge=1, description="batches before a run may be stopped, null = a ninth")
    reduction: int = Field(default=3, ge=2, description="one run in this many continues at each rung")


class Median(Section):
    """A run stops whose best is worse than the median of the others' running means (Golovin 2017)."""

    name: Literal["median"] = Field(default="median", description="which runs are stopped early")
    grace: int | None = Field(default=None, ge=1, description="batches before a run may be stopped, null = a ninth")


Scheduler = Annotated[RunAll | Asha | Median, Variants("name")]


class Sweep(Section):
    """Many runs of one configuration, with keys that vary."""

    config: LocalPath = Field(
        min_length=1, description="configuration of the runs: a file beside this one, or a packaged one"
    )
    space: dict[str, Any] = Field(min_length=1, description="dotted keys with a value, or with how they vary")
    search: Search = Field(default=GridSearch(), description="how the runs are chosen")
    scheduler: Scheduler = Field(default=RunAll(), description="which runs are stopped early")
    workers: int = Field(default=1, ge=1, description="workers per run")
    cpus: float = Field(default=1.0, gt=0, description="CPU cores per worker")
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs per worker, a fraction shares one; null = 1 where there are GPUs"
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="runs at once, null = as many as there is room for"
    )
    max_failures: int = Field(default=2, ge=0, description="how often a run is resumed after its process died")

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        """Refuse values that are allowed one by one but not together."""
        conflicts = []
        if isinstance(self.search, OptunaSearch) and len(set(self.search.objectives)) < len(self.search.objectives):
            text = f"search.objectives={show(self.search.objectives)} has one twice: leave it out"
            conflicts.append(Conflict(text, ("search.objectives",)))
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            text = f"gpus={self.gpus}: more than one GPU is a whole number of them; a worker uses one: type gpus=1"
            conflicts.append(Conflict(text, ("gpus",)))
        refuse(conflicts)
        return self


def load_sweep(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Sweep, dict[str, str]]:
    """The sweep of the file at `path`, or of the packaged one of that name.

    Args:
        path: a YAML file.
        overrides: of the sweep's own keys, each with `PREFIX`, such as {"sweep.search.trials": 4}.

    Returns:
        The sweep, and where the file says each key of its space.

    Raises:
        ConfigError: a file that cannot be read, with all problems of its values, one per line.
    """
    found = _find(path)
    file = read_mapping(found)
    if not {"config", "space"} & file.values.keys():
        raise ConfigError(f"{found} is no sweep, which has config and space, as {packaged_sweeps()[0]} has")
    given = override_layer(overrides or {})
    top = Layer(given.values.get("sweep", {}), {key[1:]: origin for key, origin in given.where.items() if key[1:]})
    if "space" in top.values:
        raise ConfigError(f"{top.where[('space',)]}: it cannot be typed, what varies is written in {found}")
    merged = merge(Layer(file.values, {**file.where, (): str(found)}), top, Sweep)
    sweep = validated(merged, Sweep)
    places = {where[1]: place for where, place in file.where.items() if len(where) == 2 and where[0] == "space"}
    beside = found.parent / sweep.config
    return sweep.model_copy(update={"config": str(beside) if beside.exists() else sweep.config}), places


def packaged_sweeps() -> list[str]:
    """The sweeps that come with the package, as paths within its folder."""
    return sorted(file.relative_to(PACKAGED).as_posix() for file in (PACKAGED / "sweeps").rglob("*.yaml"))


def _find(path: Path) -> Path:
    """`path` if it exists, else the packaged sweep of that name."""
    refuse_remote("SWEEP", path)
    if os.path.exists(path):
        return path
    inner = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    name = inner.as_posix().removesuffix(".yaml").removeprefix("sweeps/") + ".yaml"
    if not path.is_absolute() and f"sweeps/{name}" in packaged_sweeps():
        return PACKAGED / "sweeps" / name
    names = packaged_sweeps()
    raise ConfigError(f"{path}: no such file; packaged: {', '.join(names)}{did_you_mean(str(path), names)}")
