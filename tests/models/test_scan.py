"""Linear recurrences in parallel against one step after another in numpy, and against closed forms."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.models.scan import BLOCK, SHORT, scan

KINDS = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
CONSTANT = pytest.mark.parametrize("constant", [False, True])


def some(steps: int, dtype: torch.dtype, constant: bool, batch: int = 2, hidden: int = 3) -> tuple[Tensor, ...]:
    """a with moduli up to 1, b and a start."""
    a = torch.rand(*(() if constant else (steps, batch)), hidden, dtype=torch.float64)
    if dtype.is_complex:
        a = torch.polar(a, 6 * torch.rand_like(a))
    return a, torch.randn(steps, batch, hidden, dtype=dtype), torch.randn(batch, hidden, dtype=dtype)


def reference(a: Tensor, b: Tensor, start: Tensor) -> NDArray[Any]:
    h, every = start.numpy(), []
    for a_t, b_t in zip(a.expand_as(b).numpy(), b.numpy(), strict=True):
        h = a_t * h + b_t
        every.append(h)
    return np.stack(every)


@KINDS
@CONSTANT
@settings(max_examples=15)
@given(steps=st.integers(1, 20 * BLOCK), cut=st.integers(0, 20 * BLOCK), seed=st.integers(0, 99))
def test_one_step_after_another_wherever_the_window_is_cut(
    dtype: torch.dtype, constant: bool, steps: int, cut: int, seed: int
) -> None:
    torch.manual_seed(seed)
    a, b, start = some(steps, dtype, constant)
    h = scan(a, b, start)
    np.testing.assert_allclose(h.numpy(), reference(a, b, start), rtol=0, atol=1e-12)
    cut = min(cut, steps - 1)
    if cut > 0:
        head = scan(a if constant else a[:cut], b[:cut], start)
        tail = scan(a if constant else a[cut:], b[cut:], head[-1])
        torch.testing.assert_close(torch.cat([head, tail]), h, rtol=0, atol=1e-12)


@KINDS
@CONSTANT
@pytest.mark.parametrize("steps", [1, 2, SHORT, SHORT + 1, SHORT + BLOCK, 12 * BLOCK])
def test_gradients(dtype: torch.dtype, constant: bool, steps: int) -> None:
    torch.manual_seed(0)
    inputs = [t.requires_grad_() for t in some(steps, dtype, constant, hidden=2)]
    assert torch.autograd.gradcheck(scan, inputs, fast_mode=True)


def test_what_needs_no_gradient_changes_none_of_the_others(subtests: pytest.Subtests) -> None:
    for wanted, steps in product((0, 1, 2), (1, 5, SHORT + 5)):
        with subtests.test(wanted=wanted, steps=steps):
            torch.manual_seed(0)
            inputs = some(steps, torch.float64, constant=False)
            inputs[wanted].requires_grad_()
            (alone,) = torch.autograd.grad(scan(*inputs).sin().sum(), inputs[wanted])
            for t in inputs:
                t.requires_grad_()
            assert torch.equal(torch.autograd.grad(scan(*inputs).sin().sum(), inputs)[wanted], alone)


def test_nothing_is_lost_or_overflows_over_a_long_window() -> None:
    b = torch.randint(1, 9, (3000, 1, 2)).float()
    zeros, ones = torch.zeros(1, 2), torch.ones_like(b)
    assert torch.equal(scan(ones, b, zeros), b.cumsum(0)), "sums of integers are exact"
    assert torch.equal(scan(0 * ones, b, zeros), b), "the logarithm of 0 is not taken"
    h = scan(torch.full((2,), 1j), torch.zeros(3000, 1, 2, dtype=torch.complex64), zeros + 1)
    assert h[:, 0, 1].tolist() == [1j, -1, -1j, 1] * 750, "a quarter turn a step"
    a = torch.full((3000, 1, 2), 1e-30).requires_grad_()
    h = scan(a, b, zeros)
    assert torch.equal(h.detach(), b), "products of 1e-30 are 0, and nothing is divided by them"
    h.sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad[1:], b[:-1], rtol=0, atol=1e-6)


def test_operations_grow_with_the_logarithm_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, addcmul = [], torch.addcmul

    def counted(*args: Any, **keys: Any) -> Tensor:
        counts[-1] += 1
        return addcmul(*args, **keys)

    monkeypatch.setattr(torch, "addcmul", counted)
    for steps in (1, SHORT, 98, 98 * BLOCK):
        counts.append(0)
        scan(*some(steps, torch.float64, constant=False, batch=1, hidden=1))
    assert counts[:2] == [1, SHORT]
    assert counts[3] == counts[2] + 2 * BLOCK - 1, "eight times as many steps"
    assert counts[3] < 50


def test_only_factors_states_and_start_are_kept_for_the_way_back() -> None:
    a, b, start = (t.requires_grad_() for t in some(50, torch.float64, constant=False))
    h = scan(a, b, start)
    kept: Any = h.grad_fn
    assert {t.data_ptr() for t in kept.saved_tensors} == {t.data_ptr() for t in (a, h, start)}


@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("half", [False, True])
def test_a_wide_start_keeps_the_recurrence_wide(half: bool, steps: int) -> None:
    a, b = torch.ones(steps, 1, 1, dtype=torch.bfloat16), torch.full((steps, 1, 1), 2.0**-10, dtype=torch.bfloat16)
    b.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        h = scan(a, b, torch.ones(1, 1))
    assert h.dtype == torch.float32
    assert h[-1].item() == 1 + steps * 2**-10
    h.sum().backward()
    assert b.grad is not None
    assert b.grad.dtype == torch.bfloat16
    assert b.grad.flatten().tolist() == list(range(steps, 0, -1))


def test_second_derivatives_are_refused() -> None:
    a, b, start = (t.requires_grad_() for t in some(3, torch.float64, constant=False))
    (gradient,) = torch.autograd.grad(scan(a, b, start).square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
