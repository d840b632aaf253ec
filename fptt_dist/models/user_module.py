"""A layer or network of the user's: constructed and tested before training."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fptt_dist.types import State
from fptt_dist.user_code import UserCodeError, said

STEPS, BATCH = 4, 3  # of the sequences that a module is tested with
TOLERANCE = 1e-4
GIVEN = 2  # arguments of the constructor that come before the options


@dataclass(frozen=True)
class Sizes:
    """Sizes of a user's module, and what they are called.

    Attributes:
        inputs: features per step; of a text, its symbols, of which each step is one.
        outputs: numbers per step that it gives.
        words: for `outputs`.
        is_text: whether x holds ids (S, B), int64, not features (S, B, inputs).
    """

    inputs: int
    outputs: int
    words: str
    is_text: bool = False

    def __str__(self) -> str:
        return f"{self.inputs} {'symbols' if self.is_text else 'inputs'} and {self.outputs} {self.words}"


def make_layer(kind: type[nn.Module], inputs: int, hidden: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Make a layer `kind(inputs, hidden, **options)` that keeps the protocol `(x (S, B, I), state) → (y, state)`.

    Args:
        kind: the user's class.
        inputs: I, features per step.
        hidden: H, units: y has the shape (S, B, H).
        options: further keyword arguments.

    Raises:
        UserCodeError: it cannot be constructed, or does not keep the protocol, see `check_module`.
    """
    return _make(kind, Sizes(inputs, hidden, "units"), options or {})


def make_network(
    kind: type[nn.Module],
    inputs: int,
    outputs: int,
    options: Mapping[str, Any] | None = None,
    *,
    is_text: bool = False,
) -> nn.Module:
    """Make a network `kind(inputs, outputs, **options)` that keeps the protocol `(x, state) → (y, state)`.

    Args:
        kind: the user's class.
        inputs: I, features per step, x has the shape (S, B, I); of a text, how many symbols there are.
        outputs: O, numbers per step: y has the shape (S, B, O).
        options: further keyword arguments.
        is_text: whether x holds ids (S, B).

    Raises:
        UserCodeError: it cannot be constructed, or does not keep the protocol, see `check_module`.
    """
    return _make(kind, Sizes(inputs, outputs, "outputs", is_text), options or {})


def _make(kind: type[nn.Module], sizes: Sizes, options: Mapping[str, Any]) -> nn.Module:
    _check_options(kind, options)
    given = ", ".join([str(sizes.inputs), str(sizes.outputs), *(f"{name}={each!r}" for name, each in options.items())])
    try:
        module = kind(sizes.inputs, sizes.outputs, **options)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{kind.__name__}({given}) cannot be made, of {sizes}: {said(error)}") from error
    check_module(module, sizes)
    return module


def _check_options(kind: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Check that the constructor takes the options, and needs no others."""
    named = [each for each in _parameters(kind) if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if any(each.kind is each.VAR_POSITIONAL for each in _parameters(kind)) or len(named) < GIVEN:
        return  # what it takes cannot be told
    own = {each.name: each for each in named[GIVEN:]}
    missing = [name for name, each in own.items() if each.default is each.empty and name not in options]
    if missing:
        keys = ", ".join(f"model.options.{name}" for name in missing)
        raise UserCodeError(f"{kind.__name__} needs {keys}: type {' '.join(f'model.options.{n}=…' for n in missing)}")
    unknown = [name for name in options if name not in own]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in _parameters(kind)):
        taken = ", ".join(f"model.options.{name}" for name in own) or "none"
        raise UserCodeError(f"{kind.__name__} takes no model.options.{unknown[0]}; it takes {taken}")


def _parameters(kind: type[nn.Module]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):  # written in C
        return []


def check_module(module: nn.Module, sizes: Sizes) -> None:
    """Check in evaluation mode, with a few sequences, that a module keeps the protocol.

    A state of None begins a sequence; what it gives is a pair; y is float32 and has the right shape, of one sequence,
    too; the state is a tensor or nested tuples, lists and dictionaries of tensors; and two windows give the same
    outputs as one window over both. No random numbers are consumed.

    Raises:
        UserCodeError: it does not.
    """
    training = module.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x = _sequences(module, sizes)
        whole, _ = _run(module.eval(), x, None, sizes)
        first, state = _run(module, x[:-1], None, sizes)
        last, _ = _run(module, x[-1:], state, sizes)
        _run(module, x[:, :1], None, sizes)
    pieces = torch.cat((first, last))
    if not torch.allclose(pieces, whole, rtol=0.0, atol=TOLERANCE):
        difference = (pieces - whole).abs().max().item()
        raise UserCodeError(
            f"{type(module).__name__} gives other outputs where a sequence is cut in two windows (they differ by "
            f"{difference:.2g}): its state must hold all that it knows of the steps before, and no output may depend "
            "on a later step"
        )
    module.train(training)


def _sequences(module: nn.Module, sizes: Sizes) -> Tensor:
    """Return inputs (STEPS, BATCH, ·), the same ones each time, where the module's parameters are."""
    numbers = torch.Generator().manual_seed(0)
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    if sizes.is_text:
        return torch.randint(sizes.inputs, (STEPS, BATCH), generator=numbers).to(device)
    return torch.randn(STEPS, BATCH, sizes.inputs, generator=numbers).to(device)


def _run(module: nn.Module, x: Tensor, state: State, sizes: Sizes) -> tuple[Tensor, State]:
    name, shape = type(module).__name__, (*x.shape[:2], sizes.outputs)
    kind = "of shape" if x.is_floating_point() else "of ids, int64, of shape"
    given = "state=None" if state is None else "the state it gave"
    call = f"{name}(x, state) with x {kind} {tuple(x.shape)} and {given}"
    try:
        result = module(x, state)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{call} failed: {said(error)}") from error
    if not (isinstance(result, tuple) and len(result) == 2):
        raise UserCodeError(f"{call} gave {_kind(result)}, not the pair (y, state)")
    y, after = result
    if not isinstance(y, Tensor) or tuple(y.shape) != shape:
        found = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise UserCodeError(f"{call} gave a y of {found}, not of shape {shape}: steps, sequences, {sizes.words}")
    if y.dtype != torch.float32:
        raise UserCodeError(f"{call} gave a y of {y.dtype}, not torch.float32")
    if y.isnan().any():
        raise UserCodeError(f"{call} gave a y with NaN in it")
    for part in tree_leaves(after):
        if part is not None and not isinstance(part, Tensor):
            raise UserCodeError(
                f"{call} gave a state with {_kind(part)} in it: a state is a tensor, or tuples, lists and dictionaries "
                "of tensors"
            )
    return y, after


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
