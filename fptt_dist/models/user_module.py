"""A layer from a file of the user's: imported, constructed and tested before training."""

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fptt_dist.types import State

STEPS, BATCH = 4, 3  # of the sequences that a layer is tested with
TOLERANCE = 1e-4


class LayerError(ValueError):
    """A problem with a user's layer; the message says what to do."""


def load_class(file: Path, name: str) -> type[nn.Module]:
    """Return the class of that name in a Python file, which may import its neighbors.

    Raises:
        LayerError: there is no such file or class, it is no torch.nn.Module, or the file cannot be run.
    """
    if not file.is_file():
        raise LayerError(f"there is no file {file}: type the path of the file that defines {name}")
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
        raise LayerError(f"{file} cannot be run: {_said(error)}") from error
    found = vars(module).get(name)
    if found is None:
        own = [key for key, value in vars(module).items() if _is_module(value) and value.__module__ == spec.name]
        raise LayerError(f"{file} has no {name}; its modules are {', '.join(own) or 'none'}")
    if not _is_module(found):
        raise LayerError(f"{name} of {file} is no class derived from torch.nn.Module")
    return found


def make_layer(kind: type[nn.Module], inputs: int, hidden: int) -> nn.Module:
    """Make a layer `kind(inputs, hidden)` that keeps the protocol `(x (S, B, I), state) → (y (S, B, H), state)`.

    It is tested in evaluation mode with a few sequences: a state of None begins a sequence; the output is a pair; y has
    the right shape; the state is a tensor or nested tuples, lists and dictionaries of tensors; and two windows give the
    same outputs as one window over both. The test consumes no random numbers.

    Raises:
        LayerError: it cannot be constructed, or does not keep the protocol.
    """
    name = kind.__name__
    try:
        layer = kind(inputs, hidden)
    except (Exception, SystemExit) as error:
        raise LayerError(
            f"{name}({inputs}, {hidden}) cannot be made, of {inputs} inputs and {hidden} units: {_said(error)}"
        ) from error
    training = layer.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x = torch.randn(STEPS, BATCH, inputs, generator=torch.Generator().manual_seed(0))
        whole, _ = _run(layer.eval(), x, None, hidden)
        first, state = _run(layer, x[:-1], None, hidden)
        last, _ = _run(layer, x[-1:], state, hidden)
    difference = (torch.cat((first, last)) - whole).abs().max().item()
    if not difference <= TOLERANCE:
        raise LayerError(
            f"{name} gives other outputs where a sequence is cut in two windows (they differ by {difference:.2g}): its "
            "state must hold all that it knows of the steps before, and no output may depend on a later step"
        )
    return layer.train(training)


def _run(layer: nn.Module, x: Tensor, state: State, hidden: int) -> tuple[Tensor, State]:
    name, shape = type(layer).__name__, (len(x), BATCH, hidden)
    given = "state=None" if state is None else "the state it gave"
    call = f"{name}(x, state) with x of shape {tuple(x.shape)} and {given}"
    try:
        result = layer(x, state)
    except (Exception, SystemExit) as error:
        raise LayerError(f"{call} failed: {_said(error)}") from error
    if not (isinstance(result, tuple) and len(result) == 2):
        raise LayerError(f"{call} gave {_kind(result)}, not the pair (y, state)")
    y, after = result
    if not isinstance(y, Tensor) or tuple(y.shape) != shape:
        found = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise LayerError(f"{call} gave a y of {found}, not of shape {shape}: steps, sequences, units")
    for part in tree_leaves(after):
        if part is not None and not isinstance(part, Tensor):
            raise LayerError(
                f"{call} gave a state with {_kind(part)} in it: a state is a tensor, or tuples, lists and dictionaries "
                "of tensors"
            )
    return y, after


def _is_module(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _said(error: BaseException) -> str:
    """Return the error in one line, with the user's line that raised it."""
    here = (str(Path(torch.__file__).parent), __file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.endswith(".py") and not frame.filename.startswith(here)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
