"""A commented configuration to start from, for a file of one's own."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fptt_dist.config.values import show
from fptt_dist.tasks.data.profile import Profile, profile
from fptt_dist.tasks.data.targets import FITTING

WIDTH = 116
SHOWN = 12  # names of a comment
BATCHES = 1500  # that a first run takes
PER_EPOCH = 10  # batches of an epoch, at least, where there are enough sequences for it
SMALLEST, LARGEST = 8, 128  # sequences of a batch; several workers share one
HISTORY = 64  # steps that a forecast is made from
SHARE = 0.7  # of the series that are left to train on
PATIENCE = 20  # epochs; single ones vary much where there are few series
UNEVEN = 3  # times as many examples of the commonest class as of the rarest
TARGETS = {
    "class": "one class per series",
    "labels": "several labels per series, each 0 or 1",
    "value": "numbers, the same for a whole series",
    "step_class": "a class per step",
    "step_value": "numbers per step",
    "forecast": "the next steps of the channels",
}


def starting_config(data: str, *, series: str | None = None, targets: Sequence[str] = ()) -> str:
    """Return a configuration that trains on a file, with comments that say what is in it.

    Args:
        data: path of a table, of arrays or of a folder with arrays, as the configuration has it.
        series: a table's column with the ids; None: guessed from the names.
        targets: a table's target columns; empty: guessed from the names, else a forecast.

    Raises:
        DataError: the file cannot be read, or no target of it can be learned.
    """
    found = profile(Path(data), series=series, targets=targets)
    lines = [
        *_comment("A start, to be changed: fptt-dist config keys says what else there is."),
        *_comment(f"{data}: {_size(found)}."),
        *(line for text in _findings(found) for line in _comment(text)),
        *_task(data, found),
        *_training(found),
    ]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _size(found: Profile) -> str:
    lengths, channels = found.raw.lengths, found.raw.features
    steps = f"{lengths.min()} to {lengths.max()} steps (median {np.median(lengths):g})"
    if lengths.min() == lengths.max():
        steps = f"{lengths[0]} steps"
    named = f": {_list(map(_name, channels))}" if found.columns else ""
    return f"{len(lengths):,} series of {steps}, {len(channels)} channel{'s' * (len(channels) > 1)}{named}"


def _findings(found: Profile) -> Iterator[str]:
    columns = found.columns
    where = f" in column {_list(map(_name, columns.targets))}" if columns and columns.targets else ""
    yield f"Target: {TARGETS[found.target]}{where}."
    if found.classes:
        counts = _list(f"{_name(name)} ({count:,})" for name, count in found.classes.items())
        yield f"{len(found.classes)} classes, with their numbers of {_items(found)}: {counts}."
    if found.target == "forecast":
        if columns is not None:
            yield "No column has a usual name of a target. To learn one: config init --target COLUMN."
        else:
            yield "There is no array targets."
    if found.missing:
        total, number = sum(found.missing.values()), int(found.raw.lengths.sum()) * len(found.raw.features)
        counts = _list(f"{_name(name)} ({count:,})" for name, count in found.missing.items())
        yield f"Missing values: {total:,} of {number:,}, in channels {counts}."
    else:
        yield "No value is missing."
    if columns is not None and columns.left_out:
        yield f"Columns left out: {_list(f'{_name(name)} ({kind})' for name, kind in columns.left_out.items())}."
    if columns is not None and columns.series is None:
        yield "No column has a usual name of ids, so all rows are one series; else: config init --series COLUMN."
    if found.raw.split is not None:
        yield f"Splits: {_list(f'{part} ({count:,} series)' for part, count in _splits(found).items())}."


def _task(data: str, found: Profile) -> Iterator[str]:
    length, columns = _length(found), found.columns
    yield "task:"
    yield "  name: arrays"
    yield f"  train: {show(data)}"
    if found.raw.split is None:
        part = "the last 15 % of each series' steps" if found.target == "forecast" else "15 % of the series"
        yield f"  # validation: FILE  # a file of its own; without one, {part} are held out"
        yield "  # test: FILE        # the same"
    yield f"  target: {found.target}"
    if found.target == "forecast":
        yield f"  length: {length}  # steps that a forecast is made from"
        yield "  horizon: 1  # steps ahead"
    else:
        yield f"  length: {length}  # steps of the longest series"
    if columns is not None:
        if columns.series != "series":
            yield f"  series_column: {show(columns.series)}"
        if columns.time != "time":
            yield f"  time_column: {show(columns.time)}" + "  # the rows are in order" * (columns.time is None)
        if columns.targets:
            yield f"  target_columns: {show(columns.targets)}"
        if columns.left_out:
            yield f"  feature_columns: {show(columns.features)}"
        if columns.split is not None:
            yield f"  split_column: {show(columns.split)}"
    if found.missing:
        yield "  missing: fill  # carry the last value forward, and show the network which are missing"
    counts = list(found.classes.values())
    if counts and max(counts) >= UNEVEN * min(counts):
        yield f"  class_weights: balanced  # the commonest class has {max(counts) / min(counts):.0f} times the rarest's"
    first, *others = FITTING[found.target]
    yield f"  # metrics: [{first}]  # also {', '.join(others)}; the first one decides which checkpoint is the best"


def _training(found: Profile) -> Iterator[str]:
    length, examples = _length(found), _examples(found)
    batch = min(_power_of_2(examples), max(SMALLEST, min(LARGEST, _power_of_2(examples // PER_EPOCH))))
    per_epoch = max(1, examples // batch)
    epochs = min(200, max(5, round(BATCHES / per_epoch)))
    yield from (
        "model:",
        "  layer: lstm  # config keys model.layer lists the others",
        f"  hidden: {64 if examples < 5000 else 128}",
        "algorithm: fptt  # the baselines: bptt, tbptt",
        "fptt:",
        "  alpha: 0.5  # strength of the regularizer; 0 is tbptt",
        f"  windows: {max(1, round(length**0.5))}  # updates per sequence, about sqrt({length}); tune it with alpha",
        "  metric: preconditioned",
        "optimizer: {name: adam, lr: 3e-3}",
        "train:",
        f"  batch_size: {batch}",
        f"  max_epochs: {epochs}  # of about {per_epoch} batches",
        f"  patience: {PATIENCE}  # ends after so many epochs in a row without a better one",
    )


def _length(found: Profile) -> int:
    longest = int(found.raw.lengths.max())
    return max(2, min(HISTORY, longest // 4) if found.target == "forecast" else longest)


def _examples(found: Profile) -> int:
    """Return about how many training sequences there are; of a forecast, one begins at each step."""
    if found.target == "forecast":
        return int(np.maximum(0, SHARE * found.raw.lengths - _length(found)).sum())
    return _splits(found)["train"] if found.raw.split is not None else int(SHARE * len(found.raw.lengths))


def _power_of_2(most: int) -> int:
    return 1 << max(1, most).bit_length() - 1


def _splits(found: Profile) -> dict[str, int]:
    assert found.raw.split is not None
    return {part: int((found.raw.split == part).sum()) for part in ("train", "validation", "test")}


def _items(found: Profile) -> str:
    return "steps" if found.target == "step_class" else "series"


def _name(name: str) -> str:
    return name if name.isalnum() else show(name)


def _list(texts: Iterable[str]) -> str:
    named = list(texts)
    return ", ".join(named[:SHOWN]) + (f", … ({len(named)} in all)" if len(named) > SHOWN else "")
