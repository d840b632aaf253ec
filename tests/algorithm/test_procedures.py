"""FPTT and its baselines as settings: windows, weights, updates."""

import pytest
import torch

from fptt_dist.algorithm import PROCEDURES, detach, sequence_windows
from fptt_dist.algorithm.schedules import LARGEST, constant, cosine, inverse_lr, linear


@pytest.mark.parametrize(
    ("name", "passes", "updates"),
    [("fptt", 4, True), ("online", 4, True), ("tbptt", 4, False), ("bptt_aux", 1, False), ("bptt", 1, False)],
)
def test_passes_and_updates(name: str, passes: int, updates: bool) -> None:
    procedure = PROCEDURES[name]
    graphs = list(procedure.passes(22, 4))
    assert len(graphs) == passes
    assert procedure.update_each_window is updates
    covered = [step for graph in graphs for window in graph for step in range(22)[window.part]]
    assert covered == list(range(22))
    assert PROCEDURES[name].has_force == (name == "fptt")


def test_bptt_has_one_window_whatever_k_is() -> None:
    ((window,),) = PROCEDURES["bptt"].passes(22, 4)
    assert (window.index, window.count, window.steps) == (1, 1, 22)


@pytest.mark.parametrize("name", ["fptt", "online", "bptt"])
def test_the_loss_itself_is_trained(name: str) -> None:
    assert {PROCEDURES[name].weight(w, terminal=t) for w in sequence_windows(22, 4) for t in (True, False)} == {1.0}


def test_truncated_bptt_weighs_windows_by_their_steps_or_takes_the_last() -> None:
    windows = sequence_windows(22, 4)
    tbptt = PROCEDURES["tbptt"]
    assert [tbptt.weight(w, terminal=False) for w in windows] == [5 / 22, 6 / 22, 5 / 22, 6 / 22]
    assert [tbptt.weight(w, terminal=True) for w in windows] == [0.0, 0.0, 0.0, 1.0]


def test_auxiliary_losses_are_averaged() -> None:
    weights = [PROCEDURES["bptt_aux"].weight(w, terminal=True) for w in sequence_windows(22, 4)]
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


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_alpha_schedules(progress: float) -> None:
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
    assert inverse_lr(0.5)(0.0, 0.0) == 0.5, "no learning rate, no step: the pull is not needed"
