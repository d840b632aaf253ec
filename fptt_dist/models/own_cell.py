"""A cell from a file of the user's: found, made, and tried out before anything is trained with it."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEPS, BATCH = 4, 3  # of the sequences that a cell is tried with
TOLERANCE = 1e-4


class CellError(ValueError):
    """What is wrong with a user's cell, and what to do."""


def load_class(file: Path, name: str) -> type[nn.Module]:
    """The class of that name in a Python file, which may import its neighbours.

    Raises:
        CellError: there is no such file or class, it is no torch.nn.Module, or the file cannot be run.
    """
    if not file.is_file():
        raise CellError(f"there is no file {file}: type the path of the file that defines {name}")
    spec = importlib.util.spec_from_file_location(f"own_cell_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: what the file defines may look itself up
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CellError(f"{file} cannot be run: {_said(error)}") from error
    found = vars(module).get(name)
    if found is None:
        own = [key for key, value in vars(module).items() if _is_module(value) and value.__module__ == spec.name]
        raise CellError(f"{file} has no {name}; its modules are {', '.join(own) or 'none'}")
    if not _is_module(found):
        raise CellError(f"{name} of {file} is no class derived from torch.nn.Module")
    return found


def make_cell(kind: type[nn.Module], inputs: int, hidden: int) -> nn.Module:
    """A cell `kind(inputs, hidden)` that keeps the protocol `(x (S, B, I), state) → (y (S, B, H), state)`.

    It is tried in evaluation mode with a few sequences: a state of None begins; what comes out is a pair; y has the
    right shape; the state is a tensor or nested tuples, lists and dictionaries of tensors, and together with the next
    window gives what one window gives. No random number is used up by that.

    Raises:
        CellError: it cannot be made, or does not keep the protocol.
    """
    name = kind.__name__
    try:
        cell = kind(inputs, hidden)
    except Exception as error:
        raise CellError(
            f"{name}({inputs}, {hidden}) cannot be made, of {inputs} inputs and {hidden} units: {_said(error)}"
        ) from error
    training = cell.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x = torch.randn(STEPS, BATCH, inputs, generator=torch.Generator().manual_seed(0))
        whole, _ = _run(cell.eval(), x, None, hidden)
        first, state = _run(cell, x[:-1], None, hidden)
        last, _ = _run(cell, x[-1:], state, hidden)
    difference = (torch.cat((first, last)) - whole).abs().max().item()
    if not difference <= TOLERANCE:
        raise CellError(
            f"{name} gives other outputs where a sequence is cut in two windows (they differ by {difference:.2g}): its "
            "state must hold all that it knows of the steps before, and no output may depend on a later step"
        )
    return cell.train(training)


def _run(cell: nn.Module, x: Tensor, state: Any, hidden: int) -> tuple[Tensor, Any]:
    name, shape = type(cell).__name__, (len(x), BATCH, hidden)
    given = "state=None" if state is None else "the state it gave"
    call = f"{name}(x, state) with x of shape {tuple(x.shape)} and {given}"
    try:
        result = cell(x, state)
    except Exception as error:
        raise CellError(f"{call} failed: {_said(error)}") from error
    if not (isinstance(result, tuple) and len(result) == 2):
        raise CellError(f"{call} gave {_kind(result)}, not the pair (y, state)")
    y, after = result
    if not isinstance(y, Tensor) or tuple(y.shape) != shape:
        found = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise CellError(f"{call} gave a y of {found}, not of shape {shape}: steps, sequences, units")
    for part in _parts(after):
        if not isinstance(part, Tensor):
            raise CellError(
                f"{call} gave a state with {_kind(part)} in it: a state is a tensor, or tuples, lists and dictionaries "
                "of tensors"
            )
    return y, after


def _parts(state: Any) -> Iterator[Any]:
    if isinstance(state, tuple | list | dict):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _parts(part)
    elif state is not None:
        yield state


def _is_module(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _said(error: BaseException) -> str:
    """The error in one line, with the user's line that it came from."""
    here = (str(Path(torch.__file__).parent), __file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.endswith(".py") and not frame.filename.startswith(here)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
