"""One step of a network as a graph without loops, from which programs for windows of any length are made."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

DYNAMIC = torch.export.Dim.DYNAMIC
_BATCH, _OTHER = 4, 3  # sequences of the two examples; what differs is the batch's dimension


class ProgramError(ValueError):
    """Reason why a network cannot be made a program."""


@dataclass(frozen=True)
class StepProgram:
    """One step, `(x, *state) → (y, *state)`, with the state as a list of tensors.

    Attributes:
        graph: of x (B, I), or (B,) where it holds ids; y is (B, O).
        x: an example of a step's inputs.
        state: examples of the state's tensors, zeros, which begin a sequence.
        batch_dims: of each of them, the dimension of the sequences; None where it has none.
    """

    graph: fx.GraphModule
    x: Tensor
    state: list[Tensor]
    batch_dims: list[int | None]

    @property
    def state_shapes(self) -> list[list[int | str]]:
        """Shapes of the state's tensors, "batch" for the number of sequences."""
        return [
            ["batch" if dim == batch else size for dim, size in enumerate(tensor.shape)]
            for tensor, batch in zip(self.state, self.batch_dims, strict=True)
        ]

    @property
    def dynamic_state(self) -> list[dict[int, object]]:
        """Dimensions of the state's tensors that may have any size, as torch.export takes them."""
        return [{} if dim is None else {dim: DYNAMIC} for dim in self.batch_dims]


class _Step(nn.Module):
    """One step of a network: windows of a single step, whose state comes as a list of tensors."""

    def __init__(self, network: nn.Module, spec: TreeSpec, kept: list[bool]) -> None:
        super().__init__()
        self.network, self._spec, self._kept = network, spec, kept

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        rest = iter(state)
        leaves = [next(rest) if kept else None for kept in self._kept]
        y, after = self.network(x.unsqueeze(0), tree_unflatten(leaves, self._spec))
        return (y[0], *(leaf for leaf in tree_flatten(after)[0] if leaf is not None))


@contextmanager
def tracing() -> Iterator[None]:
    """Trace within the context: without gradients, without what torch says of its own parts, without CPU kernels that
    are for some batch sizes only.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def step_program(network: nn.Module, inputs: int, *, symbols: bool) -> StepProgram:
    """Return one step of a network as a graph; whatever depends on its parameters alone is computed once.

    Args:
        network: `(x, state) → (y, state)`, time-major, in evaluation mode, on the CPU.
        inputs: I, features per step.
        symbols: whether x holds ids.

    Raises:
        ProgramError: the network has no state, its state does not begin as zeros, or torch cannot trace it.
    """
    dtype = next(network.parameters()).dtype
    x = torch.zeros(1, _BATCH, dtype=torch.int64) if symbols else torch.ones(1, _BATCH, inputs, dtype=dtype)
    with tracing():
        y, state = network(x, None)
        _, other = network(x[:, :_OTHER], None)
        leaves, spec = tree_flatten(state)
        kept = [leaf is not None for leaf in leaves]
        tensors = [leaf for leaf in leaves if leaf is not None]
        others = [leaf for leaf in tree_flatten(other)[0] if leaf is not None]
        if not tensors:
            raise ProgramError("it has no state: each step is computed by itself")
        zeros = [torch.zeros_like(tensor) for tensor in tensors]
        step = _Step(network, spec, kept)
        from_zeros, *after = step(x[0], *zeros)
        if not torch.equal(from_zeros, y[0]) or not all(map(torch.equal, after, tensors)):
            raise ProgramError("a state of None is not the same as zeros, with which a program begins a sequence")
        dims = [_batch_dim(tensor, less) for tensor, less in zip(tensors, others, strict=True)]
        dynamic = tuple({} if dim is None else {dim: DYNAMIC} for dim in dims)
        shapes = {"x": {0: DYNAMIC}, "state": dynamic}
        traced = traced_by_torch(step, (x[0], *zeros), shapes).module(check_guards=False)
        assert isinstance(traced, fx.GraphModule)
        _fold_constants(traced)
    return StepProgram(traced, x[0], zeros, dims)


def traced_by_torch(module: nn.Module, example: tuple[Tensor, ...], shapes: object) -> torch.export.ExportedProgram:
    """Return a module's program, by torch.export.

    Args:
        module: to be traced.
        example: its arguments.
        shapes: dimensions that may have any size.

    Raises:
        ProgramError: torch cannot trace it.
    """
    try:
        return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)  # pyright: ignore
    except Exception as error:
        said = " ".join(str(error).split("\n\n")[0].split())
        raise ProgramError(f"torch.export cannot trace it: {type(error).__name__}: {said[:400]}") from error


def _batch_dim(tensor: Tensor, other: Tensor) -> int | None:
    differing = [dim for dim, pair in enumerate(zip(tensor.shape, other.shape, strict=True)) if pair[0] != pair[1]]
    return differing[0] if differing else None


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute once what depends on parameters alone, and drop what nothing depends on."""
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            known[node] = _attribute(module, str(node.target))
        elif node.op == "call_function" and sources and all(each in known for each in sources):
            args, keywords = map_arg((node.args, node.kwargs), lambda each: known[each])
            known[node] = node.target(*args, **keywords)
    for number, (node, value) in enumerate(known.items()):
        if node.op == "call_function" and isinstance(value, Tensor) and any(user not in known for user in node.users):
            module.register_buffer(f"folded_{number}", value.detach().clone())
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(f"folded_{number}"))
    for node in reversed(list(module.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


def _attribute(module: nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found
