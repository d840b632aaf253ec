"""Trust in code that a run's folder keeps: opening somebody's run must not execute it."""

import hashlib
import os
import re
from collections.abc import Container
from pathlib import Path

from fptt_dist.config import Config, ConfigError, UserClass

KEPT = {"model.layer": "own_cell.py", "model.network": "own_network.py", "task.name": "own_task.py"}
MARKS = ("versions.json", "result.json", "checkpoints")
"""Names in a run's folder besides config.yaml, of which it has one at least."""


def kept_name(own: UserClass) -> str:
    """Return the name, in a run's folder, of the copy of a user's file: own_metrics_0.py for task.metrics[0]."""
    short = re.sub(r"[^a-z0-9]+", " ", own.key[5:]).strip().replace(" ", "_")
    return KEPT.get(own.key, f"own_{short}.py")


def is_run(file: Path) -> bool:
    """Return whether a configuration's file is that of a run."""
    names = (*MARKS, *KEPT.values())
    return file.name == "config.yaml" and any((file.parent / name).exists() for name in names)


def trusted(config: Config, run: Path, *, trust_code: bool, typed: Container[str] = ()) -> Config:
    """Return a run's configuration with the paths of those of the user's files that may be executed.

    A file is executed where the run's configuration found it, if it still equals the copy that the run keeps and the
    user who is asking started the run; with `trust_code` else the copy.

    Args:
        config: as config.yaml of the run says.
        run: the run's folder.
        trust_code: whether the user allows the copies to be executed.
        typed: keys that the user has just typed, which need no trust.

    Raises:
        ConfigError: a file that may not be executed, with its checksum.
    """
    refused, found = [], {}
    for own in config.user_classes:
        if own.key.partition("[")[0] in typed:
            continue
        kept = run / kept_name(own)
        reason = _reason(own, run, kept)
        if reason is None:
            continue
        if not kept.is_file():
            refused.append(f"  {own.key}={own}: the run keeps no copy of it, {kept.name}: train it again")
        elif trust_code:
            found[own.key] = kept.absolute()
        else:
            digest = hashlib.sha256(kept.read_bytes()).hexdigest()
            refused.append(f"  {own.key}={own}, which {reason}; the copy is {kept}, sha256 {digest}")
    if refused:
        raise ConfigError(
            f"{run} keeps code of its own, which is not executed until you say so:\n" + "\n".join(refused) + "\nRead "
            "it, then type --trust-code (in Python trust_code=True) to execute the copy"
        )
    return config.with_files(found)


def _reason(own: UserClass, run: Path, kept: Path) -> str | None:
    """Return why a file may not be executed at the place that config.yaml names; None if it may."""
    if not own.file.is_absolute() or run.resolve() in own.file.resolve().parents:
        return "is in the run's folder" if own.file.is_absolute() else "is no absolute path"
    if (run / "config.yaml").stat().st_uid != os.geteuid():
        return "another user's run names"
    if not own.file.is_file():
        return "is not there"
    if not kept.is_file() or own.file.read_bytes() != kept.read_bytes():
        return "has changed since the run began"
    return None
