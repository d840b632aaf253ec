"""The rows of the paper's tables and figures (`configs/paper/tables.yaml`), and each one's configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from fptt_dist.config import Config, ConfigError, load
from fptt_dist.config.loading.loader import PACKAGED, read_mapping
from fptt_dist.config.loading.merge import Layer, validated
from fptt_dist.config.loading.suggest import did_you_mean
from fptt_dist.config.schema.section import Section
from fptt_dist.config.values import show
from fptt_dist.layers import PLACES

Budget = Literal["smoke", "short", "full"]
FOLDER = PACKAGED / "paper"
TABLES = "tables.yaml"
S = TypeVar("S", bound=Section)
_Texts = Annotated[tuple[str, ...], Field(strict=False)]


class TargetRow(Section):
    """One row: a configuration, and what the paper prints for it."""

    config: str = Field(min_length=1, description="file of the configuration, beside this one, without .yaml")
    label: str = Field(min_length=1, description="what stands in the table; {K} is the number of windows")
    heading: str = Field(default="", description="what stands above this row and those after it")
    paper: str | None = Field(default=None, description="the paper's value as printed, null = none")
    params: str | None = Field(default=None, description="the paper's number of parameters as printed, null = none")
    dynamic: bool = Field(default=False, description="whether dynamic evaluation is asked for too")
    set: dict[str, Any] = Field(default={}, description="overrides, where rows share a file")
    column: str = Field(default="", description="what stands above its value in a grid, where labels have several rows")

    @property
    def name(self) -> str:
        """The file's name with what is set, such as adding200_fptt-windows10; in a grid cells_smnist-lem-fptt."""
        if self.column:
            return f"{self.config}-{self.label}-{self.column}"
        return self.config + "".join(f"-{key.rpartition('.')[2]}{show(value)}" for key, value in self.set.items())


class TargetGrid(Section):
    """Rows of one file: layers with every algorithm."""

    config: str = Field(min_length=1, description="file of the configuration, beside this one, without .yaml")
    heading: str = Field(min_length=1, description="what stands above the rows")
    set: dict[str, Any] = Field(default={}, description="overrides of all its rows")
    cells: _Texts = Field(default=tuple(PLACES), min_length=1, description="its layers, all if not given")
    own: dict[str, dict[str, Any]] = Field(default={}, description="overrides of the rows of a layer, by the layer")
    algorithms: _Texts = Field(min_length=1, description="the columns")
    only: dict[str, _Texts] = Field(default={}, description="the algorithms of layers that do not have all of them")

    @property
    def rows(self) -> list[TargetRow]:
        """A row for each layer and algorithm."""
        pairs = [(cell, name) for cell in self.cells for name in self.only.get(cell, self.algorithms)]
        return [
            TargetRow(
                config=self.config,
                label=cell,
                column=algorithm,
                heading="" if number else self.heading,
                set={"model.layer": cell, **self.set, **self.own.get(cell, {}), "algorithm": algorithm},
            )
            for number, (cell, algorithm) in enumerate(pairs)
        ]


class Target(Section):
    """A table or figure."""

    title: str = Field(min_length=1, description="what stands above it")
    unit: str = Field(min_length=1, description="unit of its values")
    picture: Literal["curves", "alpha", "cells"] | None = Field(
        default=None, description="what is drawn, null = nothing"
    )
    varies: _Texts = Field(description="keys that tell the rows apart, so that no override may set them")
    notes: _Texts = Field(default=(), description="what stands below it")
    rows: tuple[TargetRow, ...] = Field(strict=False, description="its rows")

    @property
    def is_grid(self) -> bool:
        """True if several of its rows share a line."""
        return any(row.column for row in self.rows)

    def named(self, text: str | None) -> list[TargetRow]:
        """The rows whose name contains `text`; all for None.

        Raises:
            ConfigError: there is none.
        """
        found = [row for row in self.rows if text is None or text in row.name]
        if not found:
            names = [row.name for row in self.rows]
            raise ConfigError(f"--only {text}: no row's name contains it; rows: {', '.join(names)}")
        return found


class Shortened(Section):
    """Overrides that shorten the rows of some families."""

    families: _Texts = Field(min_length=1, description="what the names of their rows begin with")
    smoke: dict[str, Any] = Field(description="overrides that leave a few seconds per row")
    short: dict[str, Any] = Field(description="overrides that leave minutes per row")


class Tables(Section):
    """All of them."""

    targets: dict[str, Target] = Field(min_length=1, description="tables and figures by their names")
    budgets: tuple[Shortened, ...] = Field(strict=False, description="how rows are shortened, by their families")

    def target(self, name: str) -> Target:
        """The table or figure of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.targets:
            known = f"targets: {', '.join(self.targets)}{did_you_mean(name, self.targets)}"
            raise ConfigError(f"{name}: no table or figure of the paper has this name; {known}")
        return self.targets[name]

    def overrides(self, row: TargetRow, budget: Budget) -> dict[str, Any]:
        """Return the overrides that a budget and the row itself set over the row's file.

        Raises:
            ConfigError: the row belongs to no family.
        """
        families = {family: short for short in self.budgets for family in short.families}
        found = [family for family in families if f"{row.config}_".startswith(f"{family}_")]
        if not found:
            raise ConfigError(f"{FOLDER / TABLES}: {row.config} is of none of the families {', '.join(families)}")
        shortened: dict[str, Any] = {} if budget == "full" else getattr(families[max(found, key=len)], budget)
        return {**shortened, **row.set}


def load_tables(path: Path = FOLDER / TABLES) -> Tables:
    """Read the file of all tables and figures.

    Raises:
        ConfigError: it cannot be read, or says something that it may not, with the place.
    """
    values = read_mapping(path).values
    targets, budgets = values.get("targets"), values.get("budgets")
    if not (isinstance(targets, Mapping) and isinstance(budgets, list)):
        raise ConfigError(f"{path} is no file of tables, which has targets and budgets")
    found: dict[str, Any] = {}
    for name, target in targets.items():
        kind, schema = (
            ("grids", TargetGrid) if isinstance(target, Mapping) and "grids" in target else ("rows", TargetRow)
        )
        listed = target.get(kind) if isinstance(target, Mapping) else None
        if not isinstance(listed, list) or not listed:
            raise ConfigError(f"{path}: {name} needs {kind}, a list")
        each = [
            _checked(item, f"{path}, {kind[:-1]} {number} of {name}", schema) for number, item in enumerate(listed, 1)
        ]
        rows = [row for item in each for row in (item.rows if isinstance(item, TargetGrid) else [item])]
        own = {key: value for key, value in target.items() if key != "grids"}
        found[name] = _checked({**own, "rows": rows}, f"{path}, {name}", Target)
    shortened = [_checked(item, f"{path}, budget {number}", Shortened) for number, item in enumerate(budgets, 1)]
    return _checked({**values, "targets": found, "budgets": shortened}, str(path), Tables)


def row_config(tables: Tables, row: TargetRow, budget: Budget) -> Config:
    """Return the configuration of a row under a budget.

    Raises:
        ConfigError: its file is missing, or its values are not allowed.
    """
    return load(FOLDER / f"{row.config}.yaml", tables.overrides(row, budget))


def _checked(values: Any, place: str, schema: type[S]) -> S:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place}: {show(values)} is no mapping of keys to values")
    return validated(Layer(dict(values), {(): place}), schema)
