"""Dynamic evaluation (Krause et al. 2018) against its equations, and what it may not do."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.config import ConfigError
from fptt_dist.tasks import Language
from fptt_dist.training.run import train
from fptt_dist.training.tools import dynamic_evaluation as dynamic
from fptt_dist.training.tools.dynamic_evaluation import DynamicEvaluation, evaluate_dynamically
from tests.training.helpers import checkpoints, content, differing, isolated, tiny, trainer_for
from tests.training.texts import AWD, tiny_text


def tiny_model(folder: Path, overrides: dict[str, Any] | None = None) -> tuple[nn.Module, Language]:
    trainer = trainer_for(tiny_text(folder, overrides))
    assert isinstance(trainer.task, Language)
    return copy.deepcopy(trainer.network).double(), trainer.task


def reference(model: nn.Module, task: Language, rate: float, decay: float) -> float:
    """The whole procedure in float64, one parameter at a time, written from the paper."""
    names = dict(model.named_parameters())
    initial = {name: p.detach().clone() for name, p in names.items()}
    squares = {name: torch.zeros_like(p) for name, p in names.items()}

    def run(batch: Any, state: Any) -> tuple[Tensor, Any, int]:
        logits, state = model(batch.inputs, state)
        kept = batch.targets.flatten() >= 0
        targets = batch.targets.flatten()[kept]
        return (
            nn.functional.nll_loss(logits.log_softmax(-1).flatten(0, 1)[kept], targets, reduction="sum"),
            state,
            len(targets),
        )

    def cut(state: Any) -> Any:
        return tuple(cut(s) if isinstance(s, tuple) else s.detach() for s in state)

    state, number = None, 0
    for batch in task.chunks("train", streams=100, steps=5):
        total, state, items = run(batch, state)
        gradients = torch.autograd.grad(total / items, list(names.values()))
        for name, gradient in zip(names, gradients, strict=True):
            squares[name] += gradient**2
        state, number = cut(state), number + 1
    root = {name: (square / number) ** 0.5 for name, square in squares.items()}
    mean = sum(float(r.mean()) for r in root.values()) / len(root)
    state, score, scored = None, 0.0, 0
    for batch in task.chunks("validation", streams=1, steps=5):
        total, state, items = run(batch, state)
        score, scored = score + float(total.detach()), scored + items
        gradients = torch.autograd.grad(total / items, list(names.values()))
        with torch.no_grad():
            for (name, p), gradient in zip(names.items(), gradients, strict=True):
                share = torch.minimum(torch.ones_like(p), decay * root[name] / mean)
                p += -rate * gradient / (root[name] + 0.001) + share * (initial[name] - p)
        state = cut(state)
    return math.exp(score / scored)


@pytest.mark.parametrize("overrides", [{}, AWD], ids=["lstm", "awd"])
@pytest.mark.parametrize(("rate", "decay"), [(1e-2, 0.0), (1e-2, 0.3), (3e-3, 5.0)])
def test_it_is_the_papers_update(overrides: dict[str, Any], rate: float, decay: float, tmp_path: Path) -> None:
    with isolated():
        model, task = tiny_model(tmp_path / "run", overrides)
        other = copy.deepcopy(model).eval()
        found = DynamicEvaluation(model, task, torch.device("cpu"), segment=5)("validation", rate, decay)
        expected = reference(other, task, rate, decay)
    assert found == pytest.approx(expected, rel=1e-9)


def test_every_call_starts_from_the_trained_weights(tmp_path: Path) -> None:
    model, task = tiny_model(tmp_path / "run")
    evaluation = DynamicEvaluation(model, task, torch.device("cpu"), segment=5)
    first = evaluation("validation", 1e-2, 1e-2)
    assert evaluation("test", 1e-2, 1e-2) != first
    assert evaluation("validation", 1e-2, 1e-2) == first


def test_at_rate_0_nothing_is_learnt(tmp_path: Path) -> None:
    model, task = tiny_model(tmp_path / "run")
    evaluation = DynamicEvaluation(model, task, torch.device("cpu"), segment=5)
    (whole,) = task.chunks("validation", streams=1, steps=10**6)
    with torch.no_grad():
        output, _ = model(whole.inputs)
    static = nn.functional.cross_entropy(output.flatten(0, 1), whole.targets.flatten())
    assert evaluation("validation", 0.0, 0.0) == pytest.approx(math.exp(float(static)), rel=1e-9)


def test_the_settings_are_chosen_on_the_validation_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, float]] = []
    call = DynamicEvaluation.__call__

    def noting(self: DynamicEvaluation, split: Any, rate: float, decay: float, **more: Any) -> float:
        read.append((split, rate))
        return call(self, split, rate, decay, **more)

    monkeypatch.setattr(DynamicEvaluation, "__call__", noting)
    train(tiny_text(tmp_path / "run"))
    found = evaluate_dynamically(tmp_path / "run")
    choices = 1 + len(dynamic.RATES) * len(dynamic.DECAYS)
    assert [split for split, _ in read[:choices]] == ["validation"] * choices
    assert [entry for entry in read if entry[0] == "test"] == [("test", found["rate"]), ("test", 0.0)]
    assert found["validation"] <= found["static_validation"]


def test_the_run_stays_as_it_is(tmp_path: Path) -> None:
    train(tiny_text(tmp_path / "run", AWD))
    before = content(checkpoints(tmp_path / "run")[-1])
    files = sorted(path for path in (tmp_path / "run").rglob("*"))
    evaluate_dynamically(tmp_path / "run")
    assert differing(before, content(checkpoints(tmp_path / "run")[-1])) == []
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == files


def test_it_is_for_texts(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", batches=1))
    with pytest.raises(ConfigError, match=r"task\.name=adding"):
        evaluate_dynamically(tmp_path / "run")
