"""The steps of a recurrent layer that has no fused kernel, run over a window: one after another, or compiled in chunks.

A layer of one's own writes its step as a function of a module, `step(state, x_t, *weights) → state`, calls `unroll`
and derives from `Stepped`. What does not depend on the state, such as the inputs' projection, is computed for the whole
window before.
"""

import logging
import types
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

State = TypeVar("State", Tensor, tuple[Tensor, ...])
PIECE = 8  # steps compiled together: what compiling costs grows with them, what a chunk saves hardly does
LOG = logging.getLogger("fptt_dist")
_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}


class Stepped(nn.Module):
    """A layer that runs its steps by `unroll`.

    Attributes:
        stepped: whether there are steps to compile; False for a layer that runs a whole window at once.
        compiled: whether chunks of the window are compiled. Neither saved nor described.
    """

    stepped: ClassVar[bool] = True
    compiled = False


def compile_steps(network: nn.Module) -> bool:
    """Compile the steps of every layer of a network that steps through its windows.

    Compiling takes some ten seconds, when the first window is run and again at the first without gradients. Windows of
    fewer than 8 steps run as before. On a CPU a cell of many small operations gains up to a third; a small one loses.

    Returns:
        whether there is such a layer: an LSTM, GRU or tanh-RNN has kernels of its own, and others run a window at once.
    """
    found = [module for module in network.modules() if isinstance(module, Stepped) and module.stepped]
    for module in found:
        module.compiled = True
    return bool(found)


def unroll(
    step: Callable[..., State], x: Tensor, state: State, *weights: Any, compiled: bool = False
) -> tuple[Tensor, State]:
    """Run `state ← step(state, x_t, *weights)` over the window x (S, B, ·).

    Compiled, every 8 steps are one call, and what is left of the window is stepped through. The batch size may change
    without compiling anew. Gradients are those of the plain loop, of the first order only. Where compiling fails, for
    example without a C++ compiler, the plain loop is run and the log says why, once.

    Args:
        step: pure, a function of a module or class, not made anew for each window; compiled forms are kept by it.
        x: at least one step.
        state: (B, ·), or a tuple of such.
        weights: tensors, and numbers, which are compiled in as they are.
        compiled: whether to compile.

    Returns:
        the state, or the first of its tensors, after every step (S, B, ·); and the state after the last.
    """
    if not compiled or len(x) < PIECE:
        return _steps(step, x, state, weights)
    outputs = []
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, *weights)):
        state = tree_map(_with_gradient, state)
    for piece in x.contiguous().split(PIECE):
        run = _compiled_steps if len(piece) == PIECE else _steps
        output, state = run(step, piece, state, weights)
        outputs.append(output)
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0], state


def _steps(step: Callable[..., State], x: Tensor, state: State, weights: tuple[Any, ...]) -> tuple[Tensor, State]:
    outputs = []
    for x_t in x.unbind():
        state = step(state, x_t, *weights)
        outputs.append(state if isinstance(state, Tensor) else state[0])
    return torch.stack(outputs), state


def _compiled_steps(
    step: Callable[..., State], x: Tensor, state: State, weights: tuple[Any, ...]
) -> tuple[Tensor, State]:
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import TorchDynamoException

    if step not in _COMPILED:
        # Compiled forms are counted, up to a limit, by the code they are of: a step has code of its own.
        code = _steps.__code__.replace(co_name=f"_steps_of_{step.__name__}")
        own = types.FunctionType(code, _steps.__globals__)
        _COMPILED[step] = torch.compile(own, fullgraph=True, dynamic=False)
    maybe_mark_dynamic(x, 1)
    state = tree_map(_of_any_batch, state)
    try:
        with warnings.catch_warnings():  # the compiler looks at what it has no use for
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
            return _COMPILED[step](step, x, state, weights)
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        LOG.warning("%s is not compiled but run step by step: %s", step.__name__, reason)
        _COMPILED[step] = _steps
        return _steps(step, x, state, weights)


def _with_gradient(tensor: Tensor) -> Tensor:
    """Give the first state of a window a gradient too, as later ones have: the two would be compiled separately."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def _of_any_batch(tensor: Tensor) -> Tensor:
    from torch._dynamo import maybe_mark_dynamic

    tensor = tensor.contiguous().view(tensor.shape)  # a view: marks are made on the tensor object, the caller's is not
    maybe_mark_dynamic(tensor, 0)
    return tensor
