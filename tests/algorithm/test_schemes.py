"""FPTT and its baselines as settings: windows, weights, updates."""

from itertools import product

import pytest
import torch

from fptt_dist.algorithm import SCHEMES, detach, sequence_windows
from fptt_dist.algorithm.schedules import LARGEST, constant, cosine, inverse_lr, linear


def test_passes_and_updates(subtests: pytest.Subtests) -> None:
    expected = {
        "fptt": (4, True),
        "tbptt": (4, True),
        "tbptt_accumulated": (4, False),
        "bptt_aux": (1, False),
        "bptt": (1, False),
    }
    for name, (passes, updates) in expected.items():
        with subtests.test(name=name, passes=passes, updates=updates):
            procedure = SCHEMES[name]
            graphs = list(procedure.passes(22, 4))
            assert len(graphs) == passes
            assert procedure.update_each_window is updates
            covered = [step for graph in graphs for window in graph for step in range(22)[window.part]]
            assert covered == list(range(22))
            assert SCHEMES[name].has_regularizer == (name == "fptt")


def test_bptt_has_one_window_whatever_k_is() -> None:
    ((window,),) = SCHEMES["bptt"].passes(22, 4)
    assert (window.index, window.count, window.steps) == (1, 1, 22)


def test_the_loss_itself_is_trained() -> None:
    cases = product(("fptt", "tbptt", "bptt"), sequence_windows(22, 4), (True, False))
    assert {SCHEMES[name].weight(window, terminal=terminal) for name, window, terminal in cases} == {1.0}


def test_truncated_bptt_weighs_windows_by_their_steps_or_takes_the_last() -> None:
    windows = sequence_windows(22, 4)
    tbptt_accumulated = SCHEMES["tbptt_accumulated"]
    assert [tbptt_accumulated.weight(w, terminal=False) for w in windows] == [5 / 22, 6 / 22, 5 / 22, 6 / 22]
    assert [tbptt_accumulated.weight(w, terminal=True) for w in windows] == [0.0, 0.0, 0.0, 1.0]


def test_auxiliary_losses_are_averaged() -> None:
    weights = [SCHEMES["bptt_aux"].weight(w, terminal=True) for w in sequence_windows(22, 4)]
    assert weights == [0.25] * 4


def test_detach_keeps_structure_and_storage() -> None:
    leaf = torch.ones(2, requires_grad=True)
    state = {"a": (leaf * 2, None), "b": [leaf * 3]}
    cut = detach(state)
    assert cut["a"][1] is None
    for before, after in ((state["a"][0], cut["a"][0]), (state["b"][0], cut["b"][0])):
        assert before is not None
        assert not after.requires_grad
        assert after.data_ptr() == before.data_ptr()


def test_alpha_schedules(subtests: pytest.Subtests) -> None:
    for progress in (0.0, 0.25, 0.5, 1.0):
        with subtests.test(progress=progress):
            assert constant(0.3)(progress, 0.1) == 0.3
            assert linear(0.5, 0.1)(progress, 1.0) == pytest.approx(0.1 + 0.4 * progress)
            assert cosine(0.5, 0.1)(progress, 1.0) == pytest.approx(
                {0.0: 0.1, 0.25: 0.158579, 0.5: 0.3, 1.0: 0.5}[progress], 1e-5
            )


def test_alpha_follows_the_falling_learning_rate_up_to_its_maximum() -> None:
    schedule = inverse_lr(0.5, 2.0)
    assert [schedule(0.0, ratio) for ratio in (1.0, 0.5, 0.25, 0.1, 0.0)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert inverse_lr(0.5)(0.0, 0.1) == pytest.approx(5.0)
    assert inverse_lr(0.5)(0.0, 1e-40) == LARGEST, "a float32 times α is none that overflows"
    assert inverse_lr(0.5)(0.0, 0.0) == 0.5, "no learning rate, no step: the regularizer is not needed"
