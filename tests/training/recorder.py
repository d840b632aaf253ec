"""What a CUDA graph does, on a CPU: every operation is recorded with its tensors, and replayed in the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal")
FROM_HOST = ("aten::lift_fresh", "aten::_pin_memory")  # torch.tensor(number): a copy from the host


class NotCapturableError(RuntimeError):
    """What CUDA refuses inside a capture."""


class Recorder(TorchDispatchMode):
    """A `Capture`: recording has no effect on what there was before, and `replay` writes into the recorded tensors.

    Like CUDA it refuses to read a tensor on the host, and to copy from the host; Python runs once, when it records.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any, bool]] = []
        self.warm_ups = 0
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in HOST_READS or name in FROM_HOST:
            raise NotCapturableError(f"{name} inside a capture")
        if func._schema.is_mutable:  # what it writes to is put back when the recording ends
            for value, argument in zip(args, func._schema.arguments, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._before += [(t, t.clone()) for t in tree_leaves(value) if isinstance(t, Tensor)]
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result, torch.is_grad_enabled()))
        return result

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self.warm_ups += 1
        return function()

    def record(self, function: Callable[[], Any]) -> Any:
        drawn = torch.get_rng_state()
        try:
            with self:
                return function()
        finally:
            torch.set_rng_state(drawn)
            with torch.no_grad():
                for tensor, value in reversed(self._before):
                    tensor.copy_(value)
            self._before.clear()

    def replay(self) -> None:
        for func, args, kwargs, result, differentiates in self.operations:
            # Below autograd, as they were recorded; oneDNN's recurrence asks whether there is a backward to come.
            with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(differentiates):
                again = func(*args, **kwargs)
            if func._schema.is_mutable:
                continue  # it wrote where it had written
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # not a view
                    with torch.no_grad():
                        old.copy_(new)
