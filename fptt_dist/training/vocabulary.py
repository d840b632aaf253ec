"""The vocabulary of a run on a text, in its folder: what its ids mean, whatever becomes of the text."""

import hashlib
import json
import logging
from pathlib import Path

from fptt_dist.files import write_atomic
from fptt_dist.tasks import DataError, Language, Task

FILE = "vocabulary.json"
LOG = logging.getLogger("fptt_dist")


def keep_vocabulary(run: Path, task: Task) -> None:
    """Write the vocabulary of a run that starts; check that one that resumes has the training text that it had.

    Args:
        run: the run's folder.
        task: a task without a text has no vocabulary, and nothing is done.

    Raises:
        DataError: the training text is another one.
    """
    if not isinstance(task, Language):
        return
    file, digest = run / FILE, task.train_digest()
    if file.is_file() and (kept := _read(file)) is not None:
        if kept["train_sha256"] != digest:
            raise DataError(
                f"{task.train_path} is not the text that {run} was trained on: put that one back to resume, or type "
                "run.dir=… for a new run"
            )
        return
    content = {"train_sha256": digest, "sha256": _digest(task.vocabulary), "vocabulary": task.vocabulary}
    write_atomic(file, (json.dumps(content, ensure_ascii=False, indent=0) + "\n").encode())


def read_vocabulary(run: Path) -> list[str] | None:
    """Return the vocabulary of a run by its folder; None where none is kept there, or it cannot be read."""
    file = run / FILE
    kept = _read(file) if file.is_file() else None
    return None if kept is None else kept["vocabulary"]


def _read(file: Path) -> dict | None:
    """Return the content of the file; None, with a warning, where it is damaged: the training text gives it again."""
    try:
        kept = json.loads(file.read_bytes())
        if _digest(kept["vocabulary"]) == kept["sha256"] and "train_sha256" in kept:
            return kept
        problem = "its checksum is wrong"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = str(error)
    LOG.warning("%s is damaged (%s): the vocabulary is taken from the training text again", file, problem)
    return None


def _digest(vocabulary: list[str]) -> str:
    return hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()
