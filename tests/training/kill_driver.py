"""Kills a run at every step of a save (and of a start), resumes it, and says what was left: JSON on stdout.

Run as a program with a folder and the name of a case of `CASES`, because only a process without other threads may fork:
each run is a child of this warm one.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fptt_dist.training.checkpoint import store
from fptt_dist.training.run import train
from tests.training.helpers import content, differing, result, resumed, tiny, without_clock

OFTEN = {"checkpoint.every_batches": 2, "evaluate.every_batches": 2, "checkpoint.keep_last": 1}
CASES: dict[str, dict[str, Any]] = {
    "single": OFTEN,
    "consensus": {**OFTEN, "parallel.strategy": "consensus", "parallel.dual": "local"},
}
BATCHES = 4
SAVE = 2  # the save that is killed: there is an earlier checkpoint, and this one is the best and the last


class Steps:
    """Counts the steps of all saves by replacing what `checkpoint` writes with; kills itself at one of them."""

    def __init__(self, kill_at: str | None) -> None:
        self.kill_at = kill_at
        self.saves = 0
        self.seen: list[str] = []
        self._wrap(store, "write_tensors", self._write_tensors)
        self._wrap(os, "link", lambda real, source, target: self._step(f"link {Path(target).name}"))
        self._wrap(store.os, "replace", lambda real, source, target: self._step(f"rename {Path(target).name}"))
        self._wrap(store.shutil, "rmtree", lambda real, path, **more: self._rmtree(Path(path)))
        self._wrap(os, "fsync", self._fsync)

    def _wrap(self, owner: Any, name: str, before: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(real, *args, **kwargs)
            return real(*args, **kwargs)

        setattr(owner, name, wrapped)

    def _rmtree(self, path: Path) -> None:
        if path.suffix == ".tmp":
            self.saves += 1
        self._step(f"remove {path.name}")

    def _write_tensors(self, real: Any, tensors: Any, path: Path) -> None:
        name = f"write {'own ' * (path.parent.name == '0')}{path.name}"
        self._step(name)
        if self._is(f"half of {name}"):
            real(tensors, path)
            os.truncate(path, path.stat().st_size // 2)
        self._step(f"half of {name}")

    def _fsync(self, real: Any, descriptor: int) -> None:
        """Take a small file back to what a kill before, or in the middle of, its write leaves."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_file() or path.suffix not in (".json", ".tmp"):
            return
        name = f"write {'own ' * (path.parent.name == '0')}{path.name}"
        if self._is(name):
            path.unlink()
        self._step(name)
        if self._is(f"half of {name}"):
            os.truncate(path, path.stat().st_size // 2)
        self._step(f"half of {name}")

    def _is(self, name: str) -> bool:
        return self.saves in (0, SAVE) and f"{len(self.seen)} {name}" == self.kill_at

    def _step(self, name: str) -> None:
        if self.saves in (0, SAVE):  # 0: while the folder is made
            if self._is(name):
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen.append(f"{len(self.seen)} {name}")


def in_child(work: Callable[[], None]) -> int:
    """The wait status of a child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            work()
        except BaseException:
            with Path(os.environ["KILL_ERRORS"]).open("a") as errors:
                errors.write(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def listing(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) if run.is_dir() else []


def main(folder: Path, overrides: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    train(tiny(folder / "warm", overrides, batches=1))  # whatever is imported late, is imported once
    os.environ["KILL_ERRORS"] = str(folder / "errors")

    def straight() -> None:
        steps = Steps(None)
        train(tiny(folder / "straight", overrides, batches=BATCHES))
        (folder / "steps.json").write_text(json.dumps(steps.seen))

    assert in_child(straight) == 0, (folder / "errors").read_text()
    names = json.loads((folder / "steps.json").read_text())
    expected = content(max((folder / "straight" / "checkpoints").glob("step-*")))
    report: dict[str, Any] = {}
    for number, name in enumerate(names):
        config = tiny(folder / f"run{number}", overrides, batches=BATCHES)
        run = folder / f"run{number}"

        def killed(config: Any = config, name: str = name) -> None:
            Steps(name)
            train(resumed(config))

        def goes_on(config: Any = config) -> None:
            train(resumed(config))

        status = in_child(killed)
        left = listing(run)
        again = in_child(goes_on)
        newest = max((run / "checkpoints").glob("step-*"), default=None)
        report[name] = {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "left": left,
            "resumed": again == 0,
            "differing": None if newest is None else differing(expected, content(newest)),
            "result": again == 0 and without_clock(result(run)) == without_clock(result(folder / "straight")),
            "leftovers": [name for name in listing(run) if ".tmp" in name or ".lock" in name],
        }
    errors = folder / "errors"
    print(json.dumps({"steps": report, "errors": errors.read_text() if errors.is_file() else ""}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), CASES[sys.argv[2]])
