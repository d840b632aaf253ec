"""What the tests of whole runs and of faults share: runs that break off, and programs that die at a named moment.

In the pool `whole`, `broken` and `copied` are jobs. As a program (`python -m tests.parallel.fault_driver`) it is
fptt_dist's own command line, for one worker that obeys the variables FAULT_*: see `main`.
"""

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fptt_dist.config import Config
from fptt_dist.parallel import Communicator, LaunchEnvironment
from fptt_dist.parallel.comm import errors, process_group
from fptt_dist.parallel.comm.communicator import Work
from fptt_dist.training.checkpoint.store import CheckpointStore
from fptt_dist.training.process.signals import StopFlag
from fptt_dist.training.trainer import Trainer
from tests.parallel.runs import Outcome, Watched, open_trainer, tiny, train

WORDS: dict[str, Any] = {  # what makes a resumed run differ where something is left out of a checkpoint
    "model.layers": 2,
    "model.dropout": 0.5,
    "optimizer": {"name": "adam", "lr": 5e-3},
    "schedule": {"name": "cosine"},
    "fptt.schedule.name": "linear",
    "fptt.reset_dual": True,
    "checkpoint.keep_last": 20,
}


class Cut(Exception):
    """The run is interrupted here, on all workers, right after a checkpoint."""


def place(environment: LaunchEnvironment, machines: int) -> LaunchEnvironment:
    """The worker's place where the pool's workers are distributed over `machines`."""
    local = environment.world // machines
    return dataclasses.replace(
        environment,
        local_rank=environment.rank % local,
        local_world=local,
        node=environment.rank // local,
        nodes=machines,
    )


def whole(environment: LaunchEnvironment, config: Config, machines: int = 1) -> Outcome:
    """Start or resume a run, to its end."""
    return train(place(environment, machines), config)


def broken(environment: LaunchEnvironment, config: Config, batch: int, machines: int = 1) -> Path:
    """Start or resume a run, until the checkpoint of `batch` is written; its folder."""
    return until(open_trainer(place(environment, machines), config), batch)


def copied(environment: LaunchEnvironment, config: Config, batches: list[int], machines: int = 1) -> Outcome:
    """Start a run to its end; `run-N` beside its folder is what it was when the checkpoint of batch N was written."""
    trainer = open_trainer(place(environment, machines), config)
    save, trainer.flag = trainer.save, StopFlag()

    def noted(*, improved: bool = False) -> Path:
        folder = save(improved=improved)
        if environment.rank == 0 and trainer.state.position.batch in batches:
            path = trainer.folder.path
            shutil.copytree(path, path.with_name(f"{path.name}-{trainer.state.position.batch}"))
        return folder

    trainer.save = noted
    found = trainer.fit(trainer.flag)
    trainer.outcome.values = (found.validation, found.value)
    return trainer.outcome


def until(trainer: Watched, batch: int) -> Path:
    """Train until the checkpoint of `batch` is written; its folder."""
    trainer.flag = StopFlag()
    save = trainer.save

    def cut(*, improved: bool = False) -> Path:
        folder = save(improved=improved)
        if trainer.state.position.batch == batch:
            raise Cut(folder)
        return folder

    trainer.save = cut
    try:
        trainer.fit(trainer.flag)
    except Cut as here:
        return here.args[0]
    raise AssertionError(f"there was no checkpoint of batch {batch}")


def again(folder: Path, overrides: dict[str, Any]) -> Config:
    """The run in `folder`, to resume."""
    return tiny(folder, {**overrides, "resume": "auto"})


class Moment:
    """Calls `action` at the named moment of a run.

    Args:
        name: "batch" (its start), "sync" (one is on its way), "save" (this worker's files are written).
        number: which one, from 1.
        action: what happens then.
    """

    def __init__(self, name: str, number: int, action: Callable[[], None]) -> None:
        self.name, self.number, self.action = name, number, action
        self.count = 0
        train_batch, start_sum, save = Trainer._train_batch, Communicator.all_reduce_async, CheckpointStore.save

        def trained(trainer: Trainer, telemetry: Any) -> None:
            self._met("batch")
            train_batch(trainer, telemetry)

        def sent(communicator: Communicator, tensor: Any, *, name: str) -> Work:
            pending = start_sum(communicator, tensor, name=name)
            self._met(name)
            return pending

        def saved(store: CheckpointStore, *args: Any, **more: Any) -> Path:
            wait_for_all = store.wait_for_all

            def waited(name: str) -> None:
                if name == "checkpoint written":
                    self._met("save")
                wait_for_all(name)

            store.wait_for_all = waited
            try:
                return save(store, *args, **more)
            finally:
                store.wait_for_all = wait_for_all

        self._real: list[tuple[type, str, Callable[..., Any]]] = [
            (Trainer, "_train_batch", train_batch),
            (Communicator, "all_reduce_async", start_sum),
        ]
        self._real.append((CheckpointStore, "save", save))
        for (owner, method, _), replacement in zip(self._real, (trained, sent, saved), strict=True):
            setattr(owner, method, replacement)

    def over(self) -> None:
        """Put everything back."""
        for owner, method, real in self._real:
            setattr(owner, method, real)

    def _met(self, name: str) -> None:
        if name == self.name:
            self.count += 1
            if self.count == self.number:
                self.action()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(600.0)


def _wait() -> None:
    time.sleep(5.0)


def _fail() -> None:
    raise ZeroDivisionError("a fault of this rank alone")


def main() -> None:
    """`fptt_dist` as it is, but for what the environment says.

    FAULT_START: seconds instead of five minutes to find the others. FAULT_GRACE: seconds to hear who is lost.
    FAULTS: "life rank moment number action" separated by commas; life counts torchrun's restarts from 0.
    """
    process_group.START_SECONDS = float(os.environ.get("FAULT_START", process_group.START_SECONDS))
    errors.GRACE = float(os.environ.get("FAULT_GRACE", errors.GRACE))
    mine = [os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ["RANK"]]
    for fault in filter(None, os.environ.get("FAULTS", "").split(",")):
        life, rank, moment, number, action = fault.split()
        if [life, rank] == mine:
            Moment(moment, int(number), {"kill": _kill, "hang": _hang, "fail": _fail, "wait": _wait}[action])
    from fptt_dist.cli import main as program

    program()


if __name__ == "__main__":
    main()
