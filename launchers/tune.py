"""A sweep on Ray Tune: on this machine, or on the cluster that RAY_ADDRESS names."""

import logging
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fptt_dist.config import ConfigError
from fptt_dist.config.section import explicit
from fptt_dist.config.sweep import OptunaSearch
from fptt_dist.launchers.ray_cluster import MISSING, Need, connected, gpus, room
from fptt_dist.launchers.sweep import STATE, Plan, Trial
from fptt_dist.launchers.sweep_folder import check_folder, create_folder
from fptt_dist.reporting import SweepResults, write_sweep
from fptt_dist.training.lock import DirectoryLock, hold
from fptt_dist.training.own_files import create_closed, doubt_above, doubt_inside
from fptt_dist.training.resume_hint import RESUME
from fptt_dist.training.signals import TWICE_SECONDS, Interrupted, hangup

if TYPE_CHECKING:
    import optuna
    from ray.tune.search import Searcher

LOG = logging.getLogger("fptt_dist")
OBJECTIVES = {"quality": "best", "seconds": "seconds", "bytes_sent": "bytes_sent"}
"""Names of the objectives in what a run reports."""


def sweep(plan: Plan, *, resume: bool = False) -> SweepResults:
    """Train all runs of a sweep, as many at once as there is room for, and write its results.

    Args:
        plan: from `launchers.sweep.make_plan`.
        resume: go on with the sweep that the folder holds, if it does.

    Raises:
        ConfigError: a mistake, no room for a run, or another process that runs the sweep; nothing was written.
        Interrupted: by a signal; the sweep's state was saved.
    """
    if "SLURM_RESTART_COUNT" in os.environ and not resume:
        LOG.warning("--resume: SLURM started this job again")
        resume = True
    check_folder(plan, resume=resume)
    _own_state(plan)
    _require_optuna(plan)
    where = f"run.dir={plan.folder}"
    DirectoryLock(plan.folder, where).refuse()  # before Ray is started
    with ExitStack() as held:
        with connected():
            need = _need(plan)
            at_once = min(room(need), plan.sweep.concurrent or plan.count, plan.count)
            LOG.warning("%d runs of %s: %d at once", plan.count, need, at_once)
            held.enter_context(hold(plan.folder, where))
            there = check_folder(plan, resume=resume)
            create_folder(plan)
            signal_number = _fit(plan, need, at_once, there=there)
        results = write_sweep(plan.folder)
    over = sum(trial.state in ("finished", "stopped", "failed") for trial in results.trials)
    if over < plan.count:
        raise Interrupted(
            f"stopped by a signal after {over} of {plan.count} runs, saved in {plan.folder}\n"
            f"resume with: {os.environ.get(RESUME, plan.command)}",
            128 + signal_number,
        )
    return results


def _need(plan: Plan) -> Need:
    chosen = plan.sweep.gpus
    if chosen is None:
        chosen = 1.0 if gpus() and plan.base.device != "cpu" else 0.0
    return Need(plan.sweep.workers, plan.sweep.cpus, chosen)


def _fit(plan: Plan, need: Need, at_once: int, *, there: bool) -> int:
    """Run Ray Tune; the number of the signal that stopped it, if one did."""
    from ray import tune

    from fptt_dist.launchers import schedulers, trial
    from fptt_dist.launchers.bookkeeper import Bookkeeper

    command, starter = os.environ.get(RESUME, plan.command), uuid.uuid4().hex
    common = trial.Sweep(explicit(plan.base), plan.folder, need, command, starter)
    # The driver of a run on several processes only waits: a CPU of its own would keep them from starting. Ray wants it
    # to take something; a byte is always there.
    takes = {"CPU": need.cpus, "GPU": need.gpus} if need.workers == 1 else {"memory": 1.0}
    function = tune.with_resources(trial.trainable(common), takes)
    state = _own_state(plan)
    if there and tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), function, resume_unfinished=True, resume_errored=True)
    else:
        _create_state(plan, state)
        points: dict[str, Any] = {}
        searcher: Searcher | None = None
        samples = 1
        if isinstance(plan.sweep.search, OptunaSearch):
            searcher, samples = _optuna(plan, plan.sweep.search), plan.count
        else:
            points = {"trial": tune.grid_search([vars(each) for each in _order(plan)])}
        tuner = tune.Tuner(
            function,
            param_space=points,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=schedulers.build_scheduler(plan),
                num_samples=samples,
                max_concurrent_trials=at_once,
                reuse_actors=need.workers == 1,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=state.name,
                storage_path=str(state.parent),
                # All checkpoints are kept: a driver that is killed has deleted what its saved state still names.
                failure_config=tune.FailureConfig(max_failures=plan.sweep.retries),
                callbacks=[Bookkeeper(plan.folder, plan.count, plan.metric, plan.sweep.retries, plan.space.varying)],
                verbose=0,
            ),
        )
    with _stopped_by_signal() as got:
        tuner.fit()
    return got[0] if got else signal.SIGINT


def _own_state(plan: Plan) -> Path:
    """The folder of Ray Tune's state, by a path without links: no link can be made to lead elsewhere after the look.

    Ray unpickles what is there, to go on with a sweep and to sum up a run that failed.

    Raises:
        ConfigError: it is there, and somebody else could have written it.
    """
    state = (plan.folder / STATE).resolve()
    doubt = (doubt_inside(state) or doubt_above(state)) if state.exists() else None
    if doubt:
        raise ConfigError(
            f"run.dir={plan.folder}: Ray Tune unpickles its state, which runs what a file holds, and {doubt} run.dir=… "
            "for a new sweep"
        )
    return state


def _create_state(plan: Plan, state: Path) -> None:
    create_closed(state)
    doubt = doubt_above(state)
    if doubt:
        LOG.warning(
            "run.dir=%s: --resume will not continue this sweep: %s run.dir=… in another place", plan.folder, doubt
        )


def _order(plan: Plan) -> list[Trial]:
    """The default first. A scheduler compares runs with those before them: neighbours of a grid would be too alike."""
    defaults = [trial for trial in plan.trials if trial.default]
    others = [trial for trial in plan.trials if not trial.default]
    if plan.sweep.scheduler.name != "none":
        random.Random(0).shuffle(others)
    return [*defaults, *others]


def _name(trial: Any) -> str:
    return f"{trial.config['trial']['index']:03d}"


def _optuna(plan: Plan, search: OptunaSearch) -> "Searcher":
    import optuna
    from ray.tune.search.optuna import OptunaSearch as Searcher

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    modes = {"quality": "max" if plan.higher_is_better else "min"}
    metrics = [OBJECTIVES[name] for name in search.objectives]
    directions = [modes.get(name, "min") for name in search.objectives]
    alone = len(metrics) == 1
    return Searcher(
        space=_Chooser(plan),
        metric=metrics[0] if alone else metrics,
        mode=directions[0] if alone else directions,
        sampler=optuna.samplers.TPESampler(seed=search.seed),
    )


class _Chooser:
    """The points of a search by Optuna: the default's first, then what it suggests."""

    def __init__(self, plan: Plan) -> None:
        self.space = plan.space

    def __call__(self, trial: "optuna.Trial") -> dict[str, Any]:
        first = trial.number == 0
        overrides = {} if first else self.space.suggest(trial)
        return {"trial": {"index": trial.number, "overrides": overrides, "default": first}}


def _require_optuna(plan: Plan) -> None:
    if isinstance(plan.sweep.search, OptunaSearch):
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"search.name=optuna needs Optuna: {MISSING.partition(': ')[2]}") from error


@contextmanager
def _stopped_by_signal() -> Iterator[list[int]]:
    """Within the context SIGTERM, and SIGHUP if not ignored, do what Ctrl-C does: the first lets Ray Tune save.

    SIGHUP is never the second one, and what comes within five seconds of it is the same signal once more: a terminal
    that is gone, or a session that ends, sends several.
    """
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers on the main thread alone
        yield got
        return

    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        same = got[:1] == [signal.SIGHUP] and time.monotonic() - first < TWICE_SECONDS
        if got and (same or number == signal.SIGHUP):
            return
        first = time.monotonic()
        got.append(number)
        signal.raise_signal(signal.SIGINT)

    handled = (signal.SIGTERM, *hangup())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1, *handled)}
    for number in handled:
        signal.signal(number, handle)
    try:
        yield got
    finally:
        for number, handler in before.items():  # Ray Tune leaves its own
            signal.signal(number, handler)
