"""The watch for numbers that are not finite: what it catches, what it lets pass, and the window that it names."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fptt_dist.algorithm import FPTT
from fptt_dist.parallel.comm.communicator import Communicator
from fptt_dist.parallel.nan_check import LOSS, NEVER, NonFiniteRecord, NonFiniteTracker, all_finite
from tests.parallel.toys import single_worker, told

BAD = [math.nan, math.inf, -math.inf]
NAMES = ["first", "second", "third"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CPU = torch.device("cpu")


def gradients(device: torch.device = CPU) -> list[Tensor | None]:
    """One of them 0-dim, one of many elements and not contiguous, one wide."""
    values = torch.tensor(3.0), torch.randn(70, 1100).t(), torch.randn(5, dtype=torch.float64)
    return [value.to(device) for value in values]


def loss(value: float = 1.0, device: torch.device = CPU) -> Tensor:
    return torch.tensor(value, device=device)


def sighting(watch: NonFiniteTracker, window: int) -> NonFiniteRecord:
    return watch.first_of_all(Communicator(), window)


@pytest.mark.parametrize("device", DEVICES)
def test_one_element_of_any_gradient_is_caught(device: str) -> None:
    for bad, place, (i, name) in product(BAD, [0, 40_123, -1], enumerate(NAMES)):
        watch = NonFiniteTracker(NAMES, torch.device(device))
        spoilt = gradients(torch.device(device))
        tensor = spoilt[i]
        assert tensor is not None
        flat = tensor.flatten()
        flat[place % flat.numel()] = bad
        spoilt[i] = flat.view(tensor.shape)
        watch.observe(loss(device=torch.device(device)), gradients(torch.device(device)))
        assert watch.finite()
        watch.next_window()
        watch.observe(loss(device=torch.device(device)), spoilt)
        assert not watch.finite()
        assert sighting(watch, 1) == NonFiniteRecord(0, 1, name)


@pytest.mark.parametrize("bad", BAD)
def test_a_loss_alone_is_caught_and_named_before_gradients(bad: float) -> None:
    watch = NonFiniteTracker(NAMES, CPU)
    watch.observe(loss(bad), gradients())
    assert not watch.finite()
    watch.observe(loss(), [torch.tensor(bad), *gradients()[1:]])
    assert sighting(watch, 0) == NonFiniteRecord(0, 0, LOSS)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_finite_passes(device: str) -> None:
    """Both ends of float32's range in one gradient, beyond it in float64, no elements, and no gradient at all."""
    watch = NonFiniteTracker(["range", "wide", "empty", "none"], torch.device(device))
    largest = torch.finfo(torch.float32).max
    wide = torch.tensor([-1e300, 1e300], dtype=torch.float64, device=device)
    ends = torch.tensor([-largest, largest], device=device)
    watch.observe(loss(largest, torch.device(device)), [ends, wide, torch.zeros(0, 3, device=device), None])
    watch.next_window()
    assert watch.finite()
    assert sighting(watch, 7).window == NEVER
    watch.observe(loss(device=torch.device(device)), [ends, wide * 1e9, torch.zeros(0, 3, device=device), None])
    assert sighting(watch, 7) == NonFiniteRecord(0, 7, "wide")


@given(
    st.lists(st.sampled_from([None, *range(4)]), min_size=1, max_size=12),
    st.integers(0, 10**9),
    st.sampled_from(BAD),
)
def test_the_first_window_is_named_however_many_follow(spoilt: list[int | None], start: int, bad: float) -> None:
    """Window w of a run that was resumed at `start` spoils number spoilt[w]: the loss, a gradient, or nothing."""
    watch = NonFiniteTracker(NAMES, CPU)
    for which in spoilt:
        numbers = [bad if i == which else 1.0 for i in range(4)]
        watch.observe(loss(numbers[0]), [torch.tensor([0.0, number]) for number in numbers[1:]])
        watch.next_window()
    first = next((w for w, which in enumerate(spoilt) if which is not None), None)
    assert bool(watch.finite()) == (first is None)
    seen = sighting(watch, start + len(spoilt))
    if first is None:
        assert seen.window == NEVER
    else:
        assert seen == NonFiniteRecord(0, start + first, [LOSS, *NAMES][spoilt[first] or 0])


def test_all_finite() -> None:
    for bad, wide in product(BAD, [False, True]):
        tensor = torch.full((3, 1001), -3e38, dtype=torch.float64 if wide else torch.float32)
        tensor[0, 0] = 3e38
        assert all_finite(tensor * 1e200 if wide else tensor)
        tensor[1, 17] = bad
        assert not all_finite(tensor), (bad, wide)


def test_a_single_process_names_the_window_of_the_run_it_goes_on_with() -> None:
    module = nn.Linear(2, 1)
    engine = single_worker()
    engine.prepare(module)
    engine.attach(FPTT(torch.optim.SGD(module.parameters(), lr=0.1), alpha=0.1))
    engine.load_state_dict(engine.state_dict(), 40)
    for window in range(5):
        x = torch.tensor([[1.0, math.nan if window == 3 else 1.0]])
        engine.backward((module.weight * x).sum() if window == 3 else module(x).sum(), last=True)
        engine.step()
        assert all(p.grad is None for p in module.parameters())
        engine.after_update()
        assert told(engine).all_finite() == (window < 3)
    assert engine.control.first_non_finite() == NonFiniteRecord(0, 43, LOSS)
