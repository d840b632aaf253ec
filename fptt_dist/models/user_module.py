"""A layer or network of the user's: tested before training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fptt_dist.types import State
from fptt_dist.user_code import UserCodeError, said

STEPS, BATCH = 4, 3  # of the sequences that a module is tested with
TOLERANCE = 1e-4


def make_layer(kind: type[nn.Module], inputs: int, hidden: int) -> nn.Module:
    """Make a layer `kind(inputs, hidden)` that keeps the protocol `(x (S, B, I), state) → (y (S, B, H), state)`.

    Raises:
        UserCodeError: it cannot be constructed, or does not keep the protocol, see `check_protocol`.
    """
    name = kind.__name__
    try:
        layer = kind(inputs, hidden)
    except (Exception, SystemExit) as error:
        raise UserCodeError(
            f"{name}({inputs}, {hidden}) cannot be made, of {inputs} inputs and {hidden} units: {said(error)}"
        ) from error
    check_protocol(layer, inputs, hidden)
    return layer


def check_protocol(
    module: nn.Module, inputs: int, width: int, *, symbols: int | None = None, axes: str = "steps, sequences, units"
) -> None:
    """Check that a module keeps the protocol `(x (S, B, I), state) → (y (S, B, width), state)`.

    It is tested in evaluation mode with a few sequences: a state of None begins a sequence; the output is a pair; y has
    the right shape; the state is a tensor or nested tuples, lists and dictionaries of tensors; and two windows give the
    same outputs as one window over both. The test consumes no random numbers.

    Args:
        module: of the user's, on the CPU.
        inputs: I.
        width: of its outputs.
        symbols: V, where x holds ids (S, B) from 0 to V − 1.
        axes: what the dimensions of y are, for messages.

    Raises:
        UserCodeError: it does not keep it.
    """
    name, training = type(module).__name__, module.training
    numbers = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if symbols is None:
            x = torch.randn(STEPS, BATCH, inputs, generator=numbers)
        else:
            x = torch.randint(symbols, (STEPS, BATCH), generator=numbers)
        whole, _ = _run(module.eval(), x, None, width, axes)
        first, state = _run(module, x[:-1], None, width, axes)
        last, _ = _run(module, x[-1:], state, width, axes)
    difference = (torch.cat((first, last)) - whole).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserCodeError(
            f"{name} gives other outputs where a sequence is cut in two windows (they differ by {difference:.2g}): its "
            "state must hold all that it knows of the steps before, and no output may depend on a later step"
        )
    module.train(training)


def _run(module: nn.Module, x: Tensor, state: State, width: int, axes: str) -> tuple[Tensor, State]:
    name, shape = type(module).__name__, (len(x), BATCH, width)
    given = "state=None" if state is None else "the state it gave"
    call = f"{name}(x, state) with x of shape {tuple(x.shape)} and {given}"
    try:
        result = module(x, state)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{call} failed: {said(error)}") from error
    if not (isinstance(result, tuple) and len(result) == 2):
        raise UserCodeError(f"{call} gave {_kind(result)}, not the pair (y, state)")
    y, after = result
    if not isinstance(y, Tensor) or tuple(y.shape) != shape:
        found = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise UserCodeError(f"{call} gave a y of {found}, not of shape {shape}: {axes}")
    for part in tree_leaves(after):
        if part is not None and not isinstance(part, Tensor):
            raise UserCodeError(
                f"{call} gave a state with {_kind(part)} in it: a state is a tensor, or tuples, lists and dictionaries "
                "of tensors"
            )
    return y, after


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
