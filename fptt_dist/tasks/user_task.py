"""A task of the user's: constructed, and tried out with a few sequences before the run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from fptt_dist.algorithm.losses import (
    IGNORED,
    MultiLabelLoss,
    RegressionLoss,
    SequenceLoss,
    StepRegressionLoss,
    TerminalLoss,
    WindowLoss,
)
from fptt_dist.algorithm.windows import Window
from fptt_dist.tasks.base import Batch, Split, Task
from fptt_dist.user_code import UserCodeError, said

SEQUENCES = 64  # that a task is tried out with, at most
PADDING = 3  # steps behind a batch that must not count
NUMBERS = ("inputs", "outputs", "length", "train_examples")
FLAGS = ("higher_is_better", "stateful", "lengths_differ", "scale_lr_by_length")
R = TypeVar("R")


def make_task(
    kind: Callable[..., Task], options: Mapping[str, Any], *, seed: int, length: int, batch_size: int
) -> Task:
    """Make a task `kind(**options, seed=seed)` that keeps the protocol of `Task`, see `check_task`.

    Args:
        kind: the user's class.
        options: keyword arguments.
        seed: the run's.
        length: steps of the longest sequence, as configured.
        batch_size: of the global batch.

    Raises:
        UserCodeError: it cannot be constructed, or does not keep the protocol.
    """
    given = ", ".join([*(f"{name}={value!r}" for name, value in options.items()), f"seed={seed}"])
    task = _result(f"{kind.__name__}({given})", lambda: kind(**options, seed=seed))
    check_task(task, length=length, batch_size=batch_size)
    return task


def check_task(task: Task, *, length: int, batch_size: int) -> None:
    """Check that a task keeps the protocol of `Task`, and name it by its class where it has no name.

    Its attributes are checked, sequences of the first batch (shapes, types, finite inputs, targets that the loss
    can take; the same sequences whenever and in whatever slices they are asked for), an evaluation batch of each split,
    the score of outputs that are all 0, and the description of the inputs; where lengths differ, also that more padding
    changes no score.

    Args:
        task: of the user's.
        length: steps of the longest sequence, as configured.
        batch_size: of the global batch.

    Raises:
        UserCodeError: it does not keep the protocol.
    """
    kind = type(task)
    if not hasattr(task, "name"):
        task.name = kind.__name__
    _check_attributes(task, length)
    _check_training(task, min(batch_size, task.train_examples))
    for split in get_args(Split):
        _check_evaluation(task, split)
    call = f"{kind.__name__}.input_description()"
    described = _result(call, lambda: json.dumps(task.input_description(), allow_nan=False))
    if not described.startswith("{"):
        raise UserCodeError(f"{call} gave {described}, not a dictionary of plain JSON values")


def _result(call: str, function: Callable[[], R]) -> R:
    """Return what the function of the user's returns.

    Raises:
        UserCodeError: it failed, or ended the program; with `call`, the user's file and its line.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{call} failed: {said(error)}") from error


def _check_attributes(task: Task, length: int) -> None:
    def found(name: str) -> Any:
        return _result(f"{type(task).__name__}.{name}", lambda: getattr(task, name, None))

    def refuse(name: str, wanted: str) -> None:
        raise UserCodeError(f"{type(task).__name__}.{name} is {found(name)!r}, not {wanted}")

    for name in NUMBERS:
        if type(found(name)) is not int or found(name) < 1:
            refuse(name, "a whole number from 1 on")
    for name in FLAGS:
        if type(found(name)) is not bool:
            refuse(name, "True or False")
    if not isinstance(found("loss"), WindowLoss):
        refuse("loss", "a window loss, such as fptt_dist.SequenceLoss()")
    if not isinstance(found("metric"), str) or not found("metric").isidentifier():
        refuse("metric", "a name of letters, digits and _, such as 'accuracy'")
    symbols = found("vocabulary_size")
    if symbols is not None and (type(symbols) is not int or symbols < 1):
        refuse("vocabulary_size", "the number of symbols, or None where the inputs are features")
    if task.length != length:
        raise UserCodeError(
            f"{type(task).__name__}.length is {task.length}, the steps of its longest sequence, and "
            f"task.length={length}: type task.length={task.length}"
        )


def _check_training(task: Task, size: int) -> None:
    """Check sequences of the first batch of `size`, and that they are the same whenever they are asked for."""
    count = min(SEQUENCES, size)

    def batch(epoch: int, cursor: int, start: int, stop: int) -> tuple[str, Batch]:
        call = f"{type(task).__name__}.train_batch({epoch}, {cursor}, {size}, slice({start}, {stop}))"
        found = _result(call, lambda: task.train_batch(epoch, cursor, size, slice(start, stop)))
        _check_batch(task, found, call, count=stop - start)
        if task.lengths_differ and (found.global_lengths is None or found.global_lengths.shape != (size,)):
            raise UserCodeError(
                f"{call} gave no global_lengths of shape ({size},): give the lengths of the whole global batch, of "
                "which this is a slice"
            )
        return call, found

    call, whole = batch(0, 0, 0, count)
    batch(1, 0, 0, count)  # another one in between
    batch(0, (task.train_examples // size - 1) * size, 0, count)
    difference = _difference([batch(0, 0, 0, count)[1]], whole)
    if difference is not None:
        raise UserCodeError(
            f"{call} gave other {difference} the second time: it must be a pure function of its arguments and the "
            "seed, so that a run can be resumed: draw from numpy.random.default_rng([self.seed, epoch, cursor])"
        )
    middle = count // 2
    parts = [batch(0, 0, start, stop)[1] for start, stop in ((0, middle), (middle, count)) if start < stop]
    difference = _difference(parts, whole)
    if difference is not None:
        raise UserCodeError(
            f"{call} gave other {difference} than slice(0, {middle}) and slice({middle}, {count}) together: the slice "
            "is one worker's part of the global batch, which is the same for any number of workers"
        )


def _check_evaluation(task: Task, split: Split) -> None:
    """Check the first batch of a split, and the score of outputs that are all 0."""
    name = type(task).__name__
    call = f'{name}.evaluation_batches("{split}", 0, 1)'
    found = _result(call, lambda: list(islice(task.evaluation_batches(split, 0, 1), 1)))
    if not found:
        raise UserCodeError(f"{call} gave no batch: the {split} set must have at least one sequence")
    _check_batch(task, found[0], call)
    batch = found[0].without_padding()
    output = _zeros(task, batch)
    call = f"{name}.score(output, batch) with outputs of shape {tuple(output.shape)} that are all 0"
    result = _result(call, lambda: task.score(output, batch))
    if not (isinstance(result, tuple) and len(result) == 2):
        raise UserCodeError(f"{call} gave a {type(result).__name__}, not the pair (sum, number of items)")
    total, items = result
    if not isinstance(total, Tensor) or total.dim() != 0:
        raise UserCodeError(f"{call} gave a sum that is {_described(total)}, not a tensor of shape ()")
    if type(items) is not int or items < 1:
        raise UserCodeError(f"{call} gave {items!r} items, not a whole number from 1 on")
    _result(f"{name}.value({total.item() / items:g})", lambda: float(task.value(total.item() / items)))
    if task.lengths_differ:
        _check_padding(task, batch)


def _check_padding(task: Task, batch: Batch) -> None:
    """Check that more padding behind the sequences changes no score."""
    steps, call = len(batch.inputs), f"{type(task).__name__}.score(output, batch)"
    numbers = torch.Generator().manual_seed(0)
    output = torch.randn(steps + PADDING, batch.size, task.outputs, generator=numbers)
    inputs = _padded(batch.inputs)
    longer = replace(batch, inputs=inputs, targets=_padded(batch.targets) if batch.per_step_targets else batch.targets)
    (total, items), (padded, counted) = (
        _result(call, lambda each=each: task.score(output[: len(each.inputs)], each)) for each in (batch, longer)
    )
    if items != counted or not torch.allclose(total, padded, equal_nan=True):
        raise UserCodeError(
            f"{call} depends on the padding: the sum is {total.item():g} of {items} items, and with {PADDING} more "
            f"steps behind the same sequences {padded.item():g} of {counted}: count the steps of batch.mask alone, or "
            "read output[batch.lengths - 1, torch.arange(batch.size)], each sequence's last"
        )


def _padded(values: Tensor) -> Tensor:
    return torch.cat((values, values.new_zeros(PADDING, *values.shape[1:])))


def _check_batch(task: Task, batch: Batch, call: str, *, count: int | None = None) -> None:
    """Check shapes, types and values of a batch of `count` sequences (None: one or more), and its loss of outputs 0."""
    if not isinstance(batch, Batch):
        raise UserCodeError(f"{call} gave a {type(batch).__name__}, not a fptt_dist.Batch")
    _check_inputs(task, batch, call, count)
    _check_lengths(task, batch, call)
    batch = batch.without_padding()
    values = batch.inputs
    if task.vocabulary_size is None and not bool(values.isfinite().all()):
        raise UserCodeError(f"{call} gave inputs that are not finite: replace NaN and infinity")
    if task.vocabulary_size is not None and not bool(((values >= 0) & (values < task.vocabulary_size)).all()):
        raise UserCodeError(
            f"{call} gave ids from {values.min()} to {values.max()}, not from 0 to {task.vocabulary_size - 1} "
            "(vocabulary_size − 1)"
        )
    if batch.examples is not None and (batch.examples.shape != (batch.size,) or batch.examples.dtype != torch.int64):
        raise UserCodeError(f"{call} gave examples that are {_described(batch.examples)}, not (B,) int64")
    _check_targets(task, batch, call)
    window = Window(1, 1, slice(0, len(batch.inputs)), len(batch.inputs))
    more = {} if batch.lengths is None else {"lengths": batch.lengths}
    loss = _result(
        f"{type(task).__name__}.loss of the targets of {call} and outputs that are all 0",
        lambda: task.loss(_zeros(task, batch), batch.targets, window, examples=batch.examples, observe=False, **more),
    )
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not bool(loss.isfinite()):
        raise UserCodeError(f"{type(task).__name__}.loss gave {loss!r} for outputs that are all 0, not a finite number")


def _check_inputs(task: Task, batch: Batch, call: str, count: int | None) -> None:
    inputs, features = batch.inputs, () if task.vocabulary_size is not None else (task.inputs,)
    dtype = torch.float32 if features else torch.int64
    steps = "steps, at most" if task.lengths_differ else "steps"
    shape = f"({task.length}, {count or 'B'}{''.join(f', {number}' for number in features)})"
    is_right = (
        isinstance(inputs, Tensor)
        and inputs.dtype == dtype
        and inputs.dim() == 2 + len(features)
        and (1 <= len(inputs) <= task.length if task.lengths_differ else len(inputs) == task.length)
        and (inputs.shape[1] == count if count else inputs.shape[1] >= 1)
        and inputs.shape[2:] == features
    )
    if not is_right:
        words = [steps, "sequences", *(["features"] if features else [])]
        raise UserCodeError(
            f"{call} gave inputs that are {_described(inputs)}, not {dtype} of shape {shape}: {', '.join(words)}"
        )


def _check_lengths(task: Task, batch: Batch, call: str) -> None:
    lengths = batch.lengths
    if not task.lengths_differ:
        if lengths is not None:
            raise UserCodeError(f"{call} gave lengths: set {type(task).__name__}.lengths_differ = True")
        return
    if lengths is None:
        raise UserCodeError(f"{call} gave no lengths, and {type(task).__name__}.lengths_differ is True")
    if not isinstance(lengths, Tensor) or lengths.shape != (batch.size,) or lengths.dtype != torch.int64:
        raise UserCodeError(f"{call} gave lengths that are {_described(lengths)}, not int64 of shape ({batch.size},)")
    if not bool(((lengths >= 1) & (lengths <= len(batch.inputs))).all()):
        raise UserCodeError(
            f"{call} gave lengths from {lengths.min()} to {lengths.max()}, not from 1 to the {len(batch.inputs)} steps "
            "of its inputs"
        )


def _check_targets(task: Task, batch: Batch, call: str) -> None:
    name, loss, targets = type(task).__name__, task.loss, batch.targets
    if batch.per_step_targets == loss.terminal:
        each, other = ("step", "sequence") if loss.terminal else ("sequence", "step")
        raise UserCodeError(
            f"{call} gave a target per {each} (per_step_targets={batch.per_step_targets}), and "
            f"{type(loss).__name__} takes one per {other}"
        )
    around = (len(batch.inputs), batch.size) if batch.per_step_targets else (batch.size,)
    is_class = isinstance(loss, SequenceLoss | TerminalLoss)
    if is_class or isinstance(loss, RegressionLoss | StepRegressionLoss | MultiLabelLoss):
        dtype, shape = (torch.int64, around) if is_class else (torch.float32, (*around, task.outputs))
    else:  # a loss of the user's
        dtype, shape = getattr(targets, "dtype", None), (*around, *getattr(targets, "shape", ())[len(around) :])
    if not isinstance(targets, Tensor) or targets.dtype != dtype or tuple(targets.shape) != shape:
        raise UserCodeError(
            f"{call} gave targets that are {_described(targets)}, not {dtype} of shape {shape}, as "
            f"{type(loss).__name__} takes them with {name}.outputs = {task.outputs}"
        )
    if not is_class:
        if not bool(targets.isfinite().all()):
            raise UserCodeError(f"{call} gave targets that are not finite: replace NaN and infinity")
        return
    counted = targets[targets != IGNORED] if isinstance(loss, SequenceLoss) else targets
    if not bool(((counted >= 0) & (counted < task.outputs)).all()):
        raise UserCodeError(
            f"{call} gave labels from {counted.min()} to {counted.max()}, not from 0 to {task.outputs - 1} "
            f"({name}.outputs − 1)"
        )


def _zeros(task: Task, batch: Batch) -> Tensor:
    """Return outputs of the network for a batch, all 0."""
    return torch.zeros(len(batch.inputs) if task.output_steps == "all" else 1, batch.size, task.outputs)


def _difference(parts: list[Batch], whole: Batch) -> str | None:
    """Return in which way slices of a batch differ from the batch, in words; None if they do not."""
    if any(len(part.inputs) != len(whole.inputs) for part in parts):
        return "numbers of steps (all slices have those of the longest sequence of the global batch)"
    clean, expected = [part.without_padding() for part in parts], whole.without_padding()
    for name in ("inputs", "targets", "lengths", "examples"):
        dim = int(name == "inputs" or (name == "targets" and whole.per_step_targets))
        if not _equal(_joined([getattr(part, name) for part in clean], dim), getattr(expected, name)):
            return name
    if not all(_equal(part.global_lengths, whole.global_lengths) for part in parts):
        return "global_lengths"
    return None


def _joined(parts: list[Tensor | None], dim: int) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found, dim) if len(found) == len(parts) else None


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
