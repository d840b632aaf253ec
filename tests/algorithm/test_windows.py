"""The windows of a sequence, and cutting the state between them."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.algorithm import Window, detach, sequence_windows, window_slices


@st.composite
def lengths_and_counts(draw: st.DrawFn) -> tuple[int, int]:
    """T and 1 ≤ K ≤ T."""
    length = draw(st.integers(1, 3000))
    return length, draw(st.integers(1, length))


@given(lengths_and_counts())
def test_windows_cover_the_sequence_exactly_and_evenly(case: tuple[int, int]) -> None:
    length, count = case
    parts = window_slices(length, count)
    assert len(parts) == count
    assert [step for part in parts for step in range(length)[part]] == list(range(length))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@given(lengths_and_counts())
def test_window_k_is_from_floor_to_floor(case: tuple[int, int]) -> None:
    length, count = case
    for k, window in enumerate(sequence_windows(length, count), 1):
        assert window == Window(k, count, slice((k - 1) * length // count, k * length // count), length)
        assert window.steps == window.part.stop - window.part.start
    assert [w.part for w in sequence_windows(length, count)] == window_slices(length, count)


def test_the_papers_sequence_has_no_short_eleventh_window() -> None:
    assert [w.steps for w in sequence_windows(784, 10)] == [78, 78, 79, 78, 79, 78, 78, 79, 78, 79]


def test_floors_are_exact_beyond_the_precision_of_a_float() -> None:
    length = 2**53 + 1
    assert window_slices(length, 1) == [slice(0, length)]
    assert window_slices(length, 2)[1] == slice(2**52, length)


def test_impossible_cuts_are_refused(subtests: pytest.Subtests) -> None:
    for length, windows in ((5, 0), (5, -1), (5, 6), (0, 1), (0, 0), (-3, 1)):
        with subtests.test(length=length, windows=windows):
            for cut in (window_slices, sequence_windows):
                with pytest.raises(ValueError, match=f"windows={windows}.*length={length}"):
                    cut(length, windows)


class State(NamedTuple):
    """A named state, such as many cells have."""

    h: torch.Tensor
    c: torch.Tensor


def test_detach_cuts_every_tensor_and_keeps_structure_and_storage() -> None:
    leaf = torch.ones(3, requires_grad=True)
    x = leaf * 2
    state = (x, [x + 1, None], {"a": State(x + 2, x + 3)}, OrderedDict(b=(x + 4,)))
    cut = detach(state)
    assert isinstance(cut, tuple)
    assert isinstance(cut[1], list)
    assert isinstance(cut[2]["a"], State)
    pairs = [
        (state[0], cut[0]),
        (state[1][0], cut[1][0]),
        (state[2]["a"].h, cut[2]["a"].h),
        (state[2]["a"].c, cut[2]["a"].c),
        (state[3]["b"][0], cut[3]["b"][0]),
    ]
    assert cut[1][1] is None
    for before, after in pairs:
        assert before.requires_grad
        assert not after.requires_grad
        assert after.grad_fn is None
        assert after.data_ptr() == before.data_ptr()
        assert torch.equal(after, before)


def test_detach_of_nothing_is_nothing() -> None:
    assert detach(None) is None
    assert detach(()) == ()


def test_detach_refuses_what_it_cannot_cut() -> None:
    for state, kind in (((torch.ones(1), 3), "int"), ({"h": {1.0}}, "set")):
        with pytest.raises(TypeError, match=rf"^a state is a tensor, or tuples, .* of tensors, not {kind}$"):
            detach(state)


@pytest.mark.parametrize(("length", "windows", "sizes"), [(784, 10, [78] * 10 + [4]), (1024, 10, [102] * 10 + [4])])
def test_the_extra_window_of_the_authors_code(length: int, windows: int, sizes: list[int]) -> None:
    found = sequence_windows(length, windows, length // windows)
    assert [window.steps for window in found] == sizes
    assert [(window.index, window.count) for window in found] == [(k, 10) for k in range(1, 12)]
    assert [window.is_last for window in found] == [False] * 10 + [True]


def test_windows_of_a_given_size() -> None:
    found = sequence_windows(20, 3, 7)
    assert [(window.part, window.index, window.count) for window in found] == [
        (slice(0, 7), 1, 3),
        (slice(7, 14), 2, 3),
        (slice(14, 20), 3, 3),
    ]


@given(st.integers(1, 300).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))))
def test_extra_windows_tile_the_sequence(case: tuple[int, int]) -> None:
    length, windows = case
    found = sequence_windows(length, windows, length // windows)
    assert [i for window in found for i in range(length)[window.part]] == list(range(length))
    assert all(window.steps == length // windows for window in found[:windows])
    if length % windows == 0:
        assert found == sequence_windows(length, windows)
