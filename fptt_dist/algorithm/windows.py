"""The windows of a sequence, and the state that passes between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from fptt_dist.types import State


@dataclass(frozen=True)
class Window:
    """Window k of K of a sequence of `length` steps.

    Attributes:
        index: k, from 1 to K; more where the remaining steps are a window of their own.
        count: K.
        part: the window's steps.
        length: T, the sequence's length in steps.
    """

    index: int
    count: int
    part: slice
    length: int

    @property
    def steps(self) -> int:
        """Number of steps in the window."""
        return self.part.stop - self.part.start

    def real_steps(self, lengths: Tensor) -> Tensor:
        """Return how many of the window's steps are in each sequence (B,), given the sequences' lengths (B,)."""
        return (lengths - self.part.start).clamp(0, self.steps)

    @property
    def is_last(self) -> bool:
        """True for the window that ends the sequence."""
        return self.part.stop == self.length


def window_slices(length: int, windows: int) -> list[slice]:
    """Cut a sequence of `length` steps into `windows` contiguous slices whose sizes differ by at most one.

    Window k = 0 … K-1 is [⌊kT/K⌋, ⌊(k+1)T/K⌋): there is never a short extra window.

    Args:
        length: T, the sequence's length in steps.
        windows: K, the number of windows, 1 ≤ K ≤ T.

    Raises:
        ValueError: `windows` is not between 1 and `length`.

    Examples:
        >>> window_slices(7, 3)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return [window.part for window in each_window(length, windows)]


def each_window(length: int, windows: int, size: int | None = None) -> Iterator[Window]:
    """The windows of a sequence one after the other; see `sequence_windows`."""
    if not 1 <= windows <= length:
        raise ValueError(f"windows={windows}: a sequence of length={length} has between 1 and {length} windows")
    for k in range(windows if size is None else -(-length // size)):
        if size is None:
            part = slice(k * length // windows, (k + 1) * length // windows)
        else:
            part = slice(k * size, min((k + 1) * size, length))
        yield Window(k + 1, windows, part, length)


def sequence_windows(length: int, windows: int, size: int | None = None) -> list[Window]:
    """The windows of a sequence, each with its place in it.

    Args:
        length: T, the sequence's length in steps.
        windows: K, 1 ≤ K ≤ T.
        size: steps of every window but the last, which has the remaining ones; None: the slices of `window_slices`.
            With ⌊T/K⌋, as in the authors' code, there may be more than K (T = 784, K = 10: an 11th window of 4 steps).

    Raises:
        ValueError: `windows` is not between 1 and `length`.
    """
    return list(each_window(length, windows, size))


def detach(state: State) -> State:
    """Cut a recurrent state from the graph that made it.

    Args:
        state: None, a tensor, or nested tuples, lists and dictionaries of them.

    Returns:
        The same structure with detached tensors that share their storage.

    Raises:
        TypeError: a state with something else in it.
    """
    return tree_map(_detached, state)


def _detached(leaf: Any) -> Tensor | None:
    if leaf is None:
        return None
    if not isinstance(leaf, Tensor):
        raise TypeError(f"a state is a tensor, or tuples, lists and dictionaries of tensors, not {type(leaf).__name__}")
    return leaf.detach()
