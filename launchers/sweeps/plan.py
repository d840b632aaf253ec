"""The plan of a sweep: its runs, checked before anything starts."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fptt_dist.config import Config, ConfigError, apply_overrides, load, parse_overrides, require_objects
from fptt_dist.config.schema.paths import refuse_remote
from fptt_dist.config.schema.sweep import PREFIX, GridSearch, OptunaSearch, RandomSearch, Sweep, load_sweep
from fptt_dist.config.values import show
from fptt_dist.launchers.sweeps.search_space import Overrides, Space
from fptt_dist.tasks import Task
from fptt_dist.training.process.resume_hint import resuming
from fptt_dist.training.setup.engine import check_world
from fptt_dist.training.setup.task_factory import build_task

LOG = logging.getLogger("fptt_dist")
OWN = ("run.dir", "resume", "task.name", "data.root")
"""Keys of a configuration that no space may have."""
STATE = "ray"
"""The folder, within the sweep's, of Ray Tune's own state."""
SHOWN = 5  # mistakes of a sweep's runs


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        index: its number, and its folder's name.
        overrides: of the base configuration.
        default: whether it is the base configuration itself.
    """

    index: int
    overrides: Overrides
    default: bool = False

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.index:03d}"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, checked.

    Attributes:
        sweep: what was asked for.
        base: every run's configuration before its own overrides.
        space: what varies.
        folder: of the sweep, an absolute path.
        trials: all runs; of a search that chooses as it goes, the baseline trial alone.
        batches: of the base configuration's run.
        metric: the validation metric's name.
        higher_is_better: its direction.
        command: what resumes it.
    """

    sweep: Sweep
    base: Config
    space: Space
    folder: Path
    trials: list[Trial]
    batches: int
    metric: str
    higher_is_better: bool
    command: str

    @property
    def count(self) -> int:
        """Number of runs, the baseline trial included."""
        chosen = self.sweep.search.trials if isinstance(self.sweep.search, OptunaSearch) else 0
        return len(self.trials) + chosen

    def run(self, trial: Trial) -> Config:
        """Return the configuration of one run.

        Raises:
            ConfigError: its values are not allowed.
        """
        return config_of(self.base, trial.overrides, self.folder / trial.name)


def config_of(base: Config, overrides: Overrides, folder: Path) -> Config:
    """Return the configuration of a run in `folder`, wherever its workers start.

    Raises:
        ConfigError: its values are not allowed.
    """
    places = {"run.dir": str(folder), "data.root": os.path.abspath(base.data.root)}
    return apply_overrides(base, {**overrides, **places})


@contextmanager
def said_once() -> Iterator[None]:
    """Within the context the log repeats nothing: what is dropped for one run's sake is dropped for many."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        known = record.getMessage() in said
        said.add(record.getMessage())
        return not known

    LOG.addFilter(new)
    try:
        yield
    finally:
        LOG.removeFilter(new)


@said_once()
def make_plan(path: Path, words: list[str], *, processes: int | None = None) -> SweepPlan:
    """Return the plan that a sweep's file and the words after it ask for.

    Args:
        path: the file.
        words: like fptt.metric=euclidean, for all runs, or like sweep.search.trials=32, for the sweep itself.
        processes: workers per run, where something else than `workers` says it.

    Raises:
        ConfigError: a mistake; all that is wrong with the runs is found here, before the first one starts.
    """
    given = parse_overrides(words)
    own = {key: value for key, value in given.items() if key.startswith(PREFIX)}
    common = {key: value for key, value in given.items() if key not in own}
    sweep, places = load_sweep(path, own)
    if processes is not None:
        sweep = sweep.model_copy(update={"workers": processes})
    # A word wins over a value of the file's; what varies there does not become a value.
    values = {key: common.get(key, value) for key, value in sweep.space.items() if not isinstance(value, Mapping)}
    sweep = sweep.model_copy(update={"space": {**sweep.space, **values}})
    space = Space(sweep.space, places)
    for key in sweep.space:
        if any(f"{own}.".startswith(f"{key}.") for own in OWN):
            raise ConfigError(f"{places[key]}: {key} is the same for all runs: leave it out here")
        if key in common and key not in values:
            raise ConfigError(f"{places[key]}: {key} varies: type no {key}=…, or leave it out here")
    place = str(common.pop("run.dir", None) or Path("runs") / path.stem)
    refuse_remote("run.dir", place)
    folder = Path(place).absolute()
    common.pop("resume", None)
    try:
        base = load(sweep.config, {**space.fixed, **common}).with_absolute_files()
    except ConfigError as error:
        raise ConfigError("\n".join(_with_grid(line, space.fixed) for line in str(error).splitlines())) from error
    require_objects(base)
    _check_search(sweep, space)
    task = build_task(base)
    plan = SweepPlan(
        sweep=sweep,
        base=base,
        space=space,
        folder=folder,
        trials=[],
        batches=_batches(base, task),
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        command=resuming(["fptt-dist", "sweep", str(path), *words], "--resume"),
    )
    _check_runs(plan)
    plan.trials.extend(_trials(plan))
    return plan


def _with_grid(line: str, fixed: Overrides) -> str:
    """Return a line about a value, with the form for a list that was meant to be gone through."""
    for key, value in fixed.items():
        if isinstance(value, list) and line.startswith(f"{key}: {show(value)} is not allowed"):
            return f"{line}; to train with each of them write {key}: {{grid: {show(value)}}}"
    return line


def _points(sweep: Sweep, space: Space) -> list[Overrides]:
    """Return the points of a search that knows them beforehand; [] of one that chooses as it goes."""
    match sweep.search:
        case GridSearch():
            return list(space.grid())
        case RandomSearch(trials=count, seed=seed):
            return list(space.draw(count, seed))
        case OptunaSearch():
            return []


def _trials(plan: SweepPlan) -> list[Trial]:
    """Return the baseline trial, once for each seed, and then the other points, each once."""
    points = _points(plan.sweep, plan.space)
    seeds = dict.fromkeys(point["seed"] for point in points if "seed" in point and "seed" in plan.space.grids())
    defaults: list[Overrides] = [{"seed": seed} for seed in seeds] or [{}]
    runs: dict[str, Overrides] = {}  # a run that is another one again tells nothing
    for point in [*defaults, *points]:
        runs.setdefault(apply_overrides(plan.base, point).model_dump_json(), point)
    return [Trial(index, point, index < len(defaults)) for index, point in enumerate(runs.values())]


def _check_search(sweep: Sweep, space: Space) -> None:
    search = sweep.search
    if not space.varying:
        raise ConfigError("space: nothing varies: write a key with {grid: [one, another]}")
    drawn, grids = space.drawn(), space.grids()
    if isinstance(search, GridSearch) and drawn:
        raise ConfigError(
            f"space: {drawn[0]} is drawn, and search.name=grid goes through lists: write {{grid: […]}}, or type "
            "sweep.search.name=random"
        )
    if isinstance(search, RandomSearch) and not drawn:
        raise ConfigError(
            f"space: nothing is drawn: write {grids[0]} with {{choice: […]}}, or type sweep.search.name=grid"
        )
    if isinstance(search, OptunaSearch) and grids:
        raise ConfigError(f"space: Optuna chooses each value itself: write {grids[0]} with {{choice: […]}}")


def _check_runs(plan: SweepPlan) -> None:
    """Refuse a sweep with a run that its configuration does not allow."""
    space = plan.space
    problems: dict[str, str] = {}
    for point in [{}, *(_points(plan.sweep, space) or space.corners())]:
        try:
            check_world(apply_overrides(plan.base, point), plan.sweep.workers)
        except ConfigError as error:
            shown = " ".join(f"{key}={show(value)}" for key, value in point.items() if key in space.varying)
            problems.setdefault(str(error), shown)
    if problems:
        lines = [f"{text}\n  in the run {point or 'of the default'}" for text, point in problems.items()]
        more = f"\nand {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise ConfigError("\n".join(lines[:SHOWN]) + more)


def _batches(config: Config, task: Task) -> int:
    """Return the number of batches of a run."""
    each = task.train_examples // config.train.batch_size
    limits = [config.train.max_batches, config.train.max_epochs and config.train.max_epochs * each]
    return max(1, min(limit for limit in limits if limit is not None))
