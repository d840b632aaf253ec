"""Train the rows of one of the paper's tables or figures, one after another, and print them side by side."""

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptt_dist.config import Config, ConfigError, apply_overrides, changes, load, parse_overrides
from fptt_dist.config.loading.overrides import override_layer
from fptt_dist.config.schema.paths import refuse_remote
from fptt_dist.config.schema.section import leaves
from fptt_dist.config.values import show
from fptt_dist.files import write_atomic
from fptt_dist.history import require_schema
from fptt_dist.launchers.paper.rows import Budget, Tables, Target, TargetRow, load_tables, row_config
from fptt_dist.launchers.sweeps.plan import said_once
from fptt_dist.parallel import resolve_environment
from fptt_dist.parallel.comm.environment import set_variables
from fptt_dist.records import dumps, read_record
from fptt_dist.reporting import (
    DYNAMIC,
    NOT_FINITE,
    PaperRow,
    PaperTable,
    draw_alpha,
    draw_curves,
    draw_grid,
    grid_table,
    paper_table,
)
from fptt_dist.training import run as training
from fptt_dist.training.lock.directory_lock import NAME as LOCK
from fptt_dist.training.lock.directory_lock import hold
from fptt_dist.training.non_finite import NonFiniteError
from fptt_dist.training.process.resume_hint import RESUME
from fptt_dist.training.result import Result
from fptt_dist.training.run_dir import RunDirectory
from fptt_dist.training.setup.task_factory import build_task
from fptt_dist.training.tools.dynamic_evaluation import evaluate_dynamically

LOG = logging.getLogger("fptt_dist")
FOLDER = Path("runs") / "paper"
"""Where the runs of all targets are, by default."""
ROWS_DIFFER = ("algorithm", "model.layer", "model.network", "task.name")
"""Keys that tell the rows of every target apart."""
NO_MATTER = (
    *("checkpoint.", "logging.", "data.root", "run.dir", "resume"),
    *("parallel.launcher", "parallel.timeout_seconds"),
)
"""Keys in which a finished run may differ from what is asked for."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a row.

    Attributes:
        row: what it belongs to.
        seed: of the run.
        config: with its folder, `<run.dir>/<budget>/<row>-seed<seed>`.
    """

    row: TargetRow
    seed: int
    config: Config

    @property
    def folder(self) -> RunDirectory:
        """Its files."""
        return RunDirectory(self.config)

    @property
    def result(self) -> Result | None:
        """Result of the run, None unless it is finished with this very configuration."""
        folder = self.folder
        found = folder.read_result()
        if found is None:
            return None
        require_schema(folder.path)
        differing = changes(load(folder.path / "config.yaml"), folder.config)
        return None if any(not key.startswith(NO_MATTER) for key in differing) else found


@dataclass(frozen=True)
class TargetPlan:
    """A target, checked.

    Attributes:
        name: the target's.
        target: its rows, and what is said of them.
        budget: how much each row may take.
        folder: `<run.dir>/<budget>`, of the runs and the table.
        seeds: runs per row.
        runs: those of all rows, row by row.
        wanted: names of the rows to train.
        labels: of the rows, by their names.
        command: what was typed.
    """

    name: str
    target: Target
    budget: Budget
    folder: Path
    seeds: int
    runs: list[PlannedRun]
    wanted: list[str]
    labels: dict[str, str]
    command: str

    @property
    def table(self) -> PaperTable:
        """Contents of the table; of rows that this command does not train, the runs that it would have kept."""
        shown = [run for run in self.runs if run.row.name in self.wanted or run.result is not None]
        paths = {row.name: [run.folder.path for run in shown if run.row is row] for row in self.target.rows}
        rows = [
            PaperRow(
                label=self.labels[row.name],
                heading=row.heading,
                column=row.column,
                paper=row.paper,
                parameters=row.params,
                dynamic=row.dynamic,
                runs=paths[row.name],
            )
            for row in self.target.rows
        ]
        return PaperTable(self.target.title, self.target.unit, rows, self.target.notes, self.command, self.budget)

    @property
    def table_path(self) -> Path:
        """Path of the table."""
        return self.folder / f"{self.name}.md"

    @property
    def picture_path(self) -> Path:
        """Path of the plot, where there is one."""
        return self.folder / "figures" / f"{self.name}.png"


@said_once()
def make_plan(
    name: str,
    words: list[str],
    *,
    budget: Budget = "short",
    seeds: int | None = None,
    only: str | None = None,
    tables: Tables | None = None,
) -> TargetPlan:
    """Return the plan that a target, a budget and the words after them ask for.

    Args:
        name: of the target, such as table2.
        words: like optimizer.lr=1e-3, for all rows, over the budget's; or run.dir=…, the folder of all budgets.
        budget: how much each row may take.
        seeds: runs per row, with the seeds 0, 1, …; None: 1 for smoke, else 3.
        only: train only the rows whose name contains it; the table has all.
        tables: of the targets; None: the packaged ones.

    Raises:
        ConfigError: a mistake; all that is wrong with the configurations is found here.
    """
    tables = load_tables() if tables is None else tables
    target = tables.target(name)
    wanted = [row.name for row in target.named(only)]
    count = (1 if budget == "smoke" else 3) if seeds is None else seeds
    given = {".".join(path): value for path, value in leaves(override_layer(parse_overrides(words)).values)}
    root = given.pop("run.dir", None)
    _refuse_words(name, target, given)
    place = str(FOLDER if root is None else root)
    refuse_remote("run.dir", place)
    folder = Path(place) / budget
    runs, labels = [], {}
    for row in target.rows:
        base = row_config(tables, row, budget)
        labels[row.name] = row.label.format(K=base.windows)
        try:
            config = apply_overrides(base, given)
            labels[row.name] = row.label.format(K=config.windows)
            for seed in range(count):
                own = {"run.dir": str(folder / f"{row.name}-seed{seed}"), "seed": seed, "resume": "auto"}
                runs.append(PlannedRun(row, seed, apply_overrides(config, own)))
        except ConfigError as error:
            if row.name in wanted:
                raise ConfigError(f"{error}\n  in the row {row.name}") from error
    parts = ["fptt-dist", "reproduce", name, "--budget", budget, "--seeds", str(count)]
    command = shlex.join([*parts, *(["--only", only] if only is not None else []), *words])
    return TargetPlan(name, target, budget, folder, count, runs, wanted, labels, command)


@said_once()
def reproduce(plan: TargetPlan) -> str:
    """Train what is not finished, and write the table and the plot.

    After each run the table is written anew. A run with a value that is not finite says so in its cell of the
    table, and the others continue.

    Returns:
        The table, as Markdown.

    Raises:
        ConfigError: several workers, a folder that holds a run of another configuration, or another process that
            trains the same target or one of its runs.
        DataError: data are missing; nothing has been trained.
        Interrupted: a signal arrived; the run was saved, and the same command resumes it.
    """
    world = resolve_environment("auto").world
    if world > 1:
        raise ConfigError(
            f"reproduce trains with one worker, and this is one of {world}: start it without torchrun or srun, or "
            f"train its rows one by one, such as paper/{plan.target.rows[0].config}"
        )
    wanted = [run for run in plan.runs if run.row.name in plan.wanted]
    _check(wanted)
    with hold(plan.folder, f"reproduce {plan.name} in {plan.folder}", f"{LOCK}-{plan.name}"):
        return _reproduce(plan, wanted)


def _reproduce(plan: TargetPlan, wanted: list[PlannedRun]) -> str:
    """The same under the target's lock. Two targets may run at once; the locks of their runs keep them apart."""
    try:
        for number, run in enumerate(wanted, 1):
            kept = run.result is not None
            done = ", finished before" if kept else " …"
            print(f"{number} of {len(wanted)}: {run.row.name}, seed {run.seed}{done}", file=sys.stderr, flush=True)
            if not kept:
                with set_variables({RESUME: plan.command}):
                    _train(run)
            _evaluate_dynamically(run)
            _write(plan)
    finally:
        text = _write(plan)
        _draw(plan)
    return text


def _refuse_words(name: str, target: Target, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        word = f"{key}={show(value)}"
        if key == "seed":
            raise ConfigError(f"{word}: reproduce trains every row with the seeds 0, 1, …: type --seeds 3 for three")
        if key == "resume":
            raise ConfigError(f"{word}: reproduce always resumes what is there: leave it out, or type run.dir=…")
        if any(key == own or key.startswith(f"{own}.") or own.startswith(f"{key}.") for own in _varying(target)):
            row = target.rows[-1].config
            raise ConfigError(
                f"{word}: {key} tells the rows of {name} apart: leave it out, or train one row alone, such as "
                f"fptt-dist train paper/{row} {word}"
            )


def _varying(target: Target) -> tuple[str, ...]:
    return (*ROWS_DIFFER, *target.varies)


def _check(runs: list[PlannedRun]) -> None:
    """Refuse what could not be trained to the end, before anything is trained."""
    tasks: dict[str, Config] = {}
    for run in runs:
        if run.result is None:
            run.folder.refuse_held()
            run.folder.check()
            source = {
                key: getattr(run.config.task, key, None) for key in ("name", "dataset", "token_level", "text_dir")
            }
            tasks.setdefault(json.dumps(source), run.config)
    for config in tasks.values():
        build_task(config)


def _train(run: PlannedRun) -> None:
    note = run.folder.path / NOT_FINITE
    try:
        training.train(run.config)
    except NonFiniteError as error:
        LOG.warning("%s, seed %d: %s", run.row.name, run.seed, error)
        batch = re.search(r"batch (\d+)", str(error))
        said = {"batch": int(batch[1]) if batch else None, "message": str(error)}
        with run.folder.alone():
            write_atomic(note, json.dumps(said, indent=1) + "\n")
    else:
        if note.is_file():
            with run.folder.alone():
                note.unlink(missing_ok=True)


def _evaluate_dynamically(run: PlannedRun) -> None:
    """Once for each best checkpoint."""
    result, path = run.result, run.folder.path
    if not run.row.dynamic or result is None:
        return
    of = {"run_id": result.run_id, "best_batch": result.best_batch}
    file = path / DYNAMIC
    if of.items() <= (read_record(file) or {}).items():
        return
    with run.folder.alone():
        write_atomic(file, dumps({**evaluate_dynamically(path), **of}, indent=1) + "\n")


def _write(plan: TargetPlan) -> str:
    text = grid_table(plan.table) if plan.target.is_grid else paper_table(plan.table)
    os.makedirs(plan.folder, exist_ok=True)
    write_atomic(plan.table_path, text)
    return text


def _draw(plan: TargetPlan) -> None:
    match plan.target.picture:
        case "curves":
            draw_curves(plan.table, plan.picture_path)
        case "alpha":
            draw_alpha(plan.table, plan.picture_path)
        case "cells":
            draw_grid(plan.table, plan.picture_path)
        case None:
            pass
