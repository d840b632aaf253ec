"""A sweep on Ray Tune: on this node, or on the cluster that RAY_ADDRESS names."""

import logging
import os
import random
import shlex
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
from fptt_dist.config.schema.section import explicit
from fptt_dist.config.schema.sweep import OptunaSearch
from fptt_dist.files import write_atomic
from fptt_dist.launchers.ray.cluster import MISSING, Need, connected, gpus, room
from fptt_dist.launchers.sweeps.directory import check_folder, create_folder
from fptt_dist.launchers.sweeps.plan import STATE, SweepPlan, Trial
from fptt_dist.records import dumps, read_record
from fptt_dist.reporting import SweepResults, write_sweep
from fptt_dist.training.lock.directory_lock import DirectoryLock, hold
from fptt_dist.training.process.own_files import create_closed, doubt_above, doubt_inside
from fptt_dist.training.process.resume_hint import RESUME
from fptt_dist.training.process.signals import TWICE_SECONDS, Interrupted, hangup

if TYPE_CHECKING:
    import optuna
    from ray.tune.search import Searcher

LOG = logging.getLogger("fptt_dist")
OVER = ("finished", "stopped", "failed")
"""States of a run that needs no more work."""
PLACE = "folder.json"
"""Where the sweep's folder was when Ray Tune began: its own state has absolute paths."""
OBJECTIVES = {"quality": "best", "seconds": "seconds", "bytes_sent": "bytes_sent"}
"""Names of the objectives in what a run reports."""


def sweep(plan: SweepPlan, *, resume: bool = False) -> SweepResults:
    """Train all runs of a sweep, as many at once as there is room for, and write its results.

    Args:
        plan: from `launchers.sweeps.plan.make_plan`.
        resume: resume the sweep that the folder holds, if there is one.

    Raises:
        ConfigError: a mistake, no room for a run, or another process that runs the sweep; nothing was written.
        Interrupted: by a signal; the sweep's state was saved.
    """
    if "SLURM_RESTART_COUNT" in os.environ and not resume:
        LOG.warning("--resume: SLURM started this job again")
        resume = True
    check_folder(plan, resume=resume)
    _refuse_moved(plan, _own_state(plan))
    _require_optuna(plan)
    where = f"run.dir={plan.folder}"
    DirectoryLock(plan.folder, where).refuse()  # before Ray is started
    with ExitStack() as held:
        with connected():
            need = _need(plan)
            at_once = min(room(need), plan.sweep.max_concurrent or plan.count, plan.count)
            LOG.warning("%d runs of %s: %d at once", plan.count, need, at_once)
            held.enter_context(hold(plan.folder, where))
            there = check_folder(plan, resume=resume)
            create_folder(plan)
            signal_number = _fit(plan, need, at_once, there=there)
        results = write_sweep(plan.folder)
    over = sum(trial.state in OVER for trial in results.trials)
    if over < plan.count and signal_number is None:
        raise OSError(_cause(plan, results, over))
    if over < plan.count and signal_number is not None:
        raise Interrupted(
            f"stopped by a signal after {over} of {plan.count} runs, saved in {plan.folder}\n"
            f"resume with: {os.environ.get(RESUME, plan.command)}",
            128 + signal_number,
        )
    return results


def _need(plan: SweepPlan) -> Need:
    chosen = plan.sweep.gpus
    if chosen is None:
        chosen = 1.0 if gpus() and plan.base.device != "cpu" else 0.0
    return Need(plan.sweep.workers, plan.sweep.cpus, chosen)


def _fit(plan: SweepPlan, need: Need, at_once: int, *, there: bool) -> int | None:
    """Run Ray Tune; return the number of the signal that stopped it, None if none did."""
    from ray import tune

    from fptt_dist.launchers.ray import schedulers
    from fptt_dist.launchers.ray import trainable as trial
    from fptt_dist.launchers.ray.callback import Bookkeeper

    command, starter = os.environ.get(RESUME, plan.command), uuid.uuid4().hex
    common = trial.SweepContext(explicit(plan.base), plan.folder, need, plan.higher_is_better, command, starter)
    # The driver of a run on several workers only waits: a CPU of its own would keep them from starting. Ray wants it
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
                failure_config=tune.FailureConfig(max_failures=plan.sweep.max_failures),
                callbacks=[
                    Bookkeeper(plan.folder, plan.count, plan.metric, plan.sweep.max_failures, plan.space.varying)
                ],
                verbose=0,
            ),
        )
    with _stopped_by_signal() as got:
        tuner.fit()
    return got[0] if got else None


def _own_state(plan: SweepPlan) -> Path:
    """Return the folder of Ray Tune's state, by a path without links: none can be redirected after the check.

    Ray unpickles what is there, to resume a sweep and to sum up a run that failed.

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


def _refuse_moved(plan: SweepPlan, state: Path) -> None:
    """Return unless the sweep's folder is elsewhere than when it began: Ray Tune would go back to the old place.

    Raises:
        ConfigError: it is.
    """
    began = (read_record(state / PLACE) or {}).get("folder")
    if isinstance(began, str) and Path(began).resolve() != plan.folder.resolve():
        raise ConfigError(
            f"--resume: run.dir={plan.folder} was {began} when the sweep began, which Ray Tune's state still names: "
            f"move it back there, or link the old place to the new one, ln -s {shlex.quote(str(plan.folder))} "
            f"{shlex.quote(began)}"
        )


def _cause(plan: SweepPlan, results: SweepResults, over: int) -> str:
    """Say why Ray Tune has ended before all runs are over, as far as is known."""
    others = [trial for trial in results.trials if trial.state not in OVER]
    known = "; ".join(f"run {trial.name}: {trial.message or trial.state}" for trial in others[:3])
    why = known or "no more is known"
    return (
        f"{plan.folder}: Ray Tune ended after {over} of {plan.count} runs, and no signal came ({why}): see the files "
        f"error.txt in {plan.folder / STATE}; resume with: {os.environ.get(RESUME, plan.command)}"
    )


def _create_state(plan: SweepPlan, state: Path) -> None:
    create_closed(state)
    write_atomic(state / PLACE, dumps({"folder": str(plan.folder)}) + "\n")
    doubt = doubt_above(state)
    if doubt:
        LOG.warning(
            "run.dir=%s: --resume will not continue this sweep: %s run.dir=… in another place", plan.folder, doubt
        )


def _order(plan: SweepPlan) -> list[Trial]:
    """Put the baseline trial first. Schedulers compare runs with earlier ones: neighbors in a grid are too similar."""
    defaults = [trial for trial in plan.trials if trial.default]
    others = [trial for trial in plan.trials if not trial.default]
    if plan.sweep.scheduler.name != "none":
        random.Random(0).shuffle(others)
    return [*defaults, *others]


def _name(trial: Any) -> str:
    return f"{trial.config['trial']['index']:03d}"


def _optuna(plan: SweepPlan, search: OptunaSearch) -> "Searcher":
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
    """Points of a search by Optuna: the baseline trial first, then those that it suggests."""

    def __init__(self, plan: SweepPlan) -> None:
        self.space = plan.space

    def __call__(self, trial: "optuna.Trial") -> dict[str, Any]:
        first = trial.number == 0
        overrides = {} if first else self.space.suggest(trial)
        return {"trial": {"index": trial.number, "overrides": overrides, "default": first}}


def _require_optuna(plan: SweepPlan) -> None:
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
        if not got and signal.getsignal(signal.SIGINT) == before[signal.SIGINT]:
            got.append(signal.SIGINT)  # Ray Tune's own handler has seen one, and removed itself
        for number, handler in before.items():  # Ray Tune leaves its own
            signal.signal(number, handler)
