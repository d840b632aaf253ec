"""The predictions of a run's network for a file, or for what comes on standard input."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from fptt_dist.config import ConfigError, LanguageTask
from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.idx import is_file
from fptt_dist.training.predict import stream as by_step
from fptt_dist.training.predict.output import check_output, print_rows, write_rows
from fptt_dist.training.predict.series import header, predicted, read_series
from fptt_dist.training.predict.text import HEADER, TextPrediction
from fptt_dist.training.saved_run import SavedRun, open_run
from fptt_dist.training.setup.factory import exit_refused

LOG = logging.getLogger("fptt_dist")
STANDARD_INPUT = "-"


def predict_run(
    path: Path,
    source: str,
    *,
    which: str = "best",
    out: Path | None = None,
    stream: bool = False,
    trust_code: bool = False,
) -> None:
    """Print the predictions of a run's network as CSV, or write them to a file.

    Args:
        path: the run's folder.
        source: a file with the inputs, or "-" for standard input.
        which: "best" or "latest" checkpoint.
        out: file that receives the predictions; None: they are printed.
        stream: whether each step is answered as it comes.
        trust_code: see `open_run`.

    Raises:
        ConfigError: no run there, or options that do not go together.
        DataError: inputs that are not like those that the run was trained on.
        OSError: `out` could not be written.
    """
    if out is not None:
        check_output(out)
    if source == STANDARD_INPUT and not stream:
        raise ConfigError("- is standard input, which is read step by step: type --stream")
    run = open_run(path, which, trust_code=trust_code)
    run.network.output_steps = "all"
    with exit_refused(run.config):
        if isinstance(run.config.task, LanguageTask):
            _predict_text(run, source, out, window=1 if stream else None)
        else:
            _predict_series(run, source, out, stream=stream)


def _predict_text(run: SavedRun, source: str, out: Path | None, *, window: int | None) -> None:
    with _opened(source) as (lines, name):
        text = TextPrediction(run, name)
        rows = text.rows(by_step.lines_of(lines), **({} if window is None else {"window": window}))
        _give(HEADER, rows, out)
    LOG.warning(text.summary())


def _predict_series(run: SavedRun, source: str, out: Path | None, *, stream: bool) -> None:
    file = Path(source)
    if stream and (source == STANDARD_INPUT or file.suffix == ".csv"):
        with _opened(source) as (lines, name):
            rows = by_step.streamed_rows(run, by_step.lines_of(lines), name)
            _give(next(rows), rows, out)
        return
    raw = read_series(run, file)
    if stream:
        rows = by_step.streamed(run, raw)
        _give(next(rows), rows, out)
    else:
        _give(header(run, raw), predicted(run, raw), out)


def _give(names: Sequence[Any], rows: Iterator[list[Any]], out: Path | None) -> None:
    first = next(rows, None)  # a mistake in the inputs leaves no file and prints no header
    every = rows if first is None else chain([first], rows)
    if out is None:
        print_rows(names, every, sys.stdout)
    else:
        LOG.warning("%d rows are in %s", write_rows(names, every, out), out)


@contextmanager
def _opened(source: str) -> Iterator[tuple[TextIO, str]]:
    """Open a text file, or standard input.

    Raises:
        DataError: it is not there, or no UTF-8.
    """
    try:
        if source == STANDARD_INPUT:
            yield sys.stdin, "standard input"
            return
        if not is_file(Path(source)):
            raise DataError(f"there is no file {source}")
        with Path(source).open(encoding="utf-8", newline="") as file:
            yield file, source
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 ({error.reason}): save it as UTF-8") from error
