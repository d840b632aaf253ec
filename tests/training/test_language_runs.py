"""Runs on a text: the carried state, lengths and rates, masks, resuming bit for bit, what is refused."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fptt_dist.config import ConfigError, apply_overrides, load
from fptt_dist.models import hidden_of
from fptt_dist.tasks import DataError, Language
from fptt_dist.training.evaluation import evaluate
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.tools.dry_run import dry_run
from fptt_dist.training.tools.export import export_run
from fptt_dist.training.tools.memory_model import MOMENTS
from fptt_dist.training.trainer import Trainer
from fptt_dist.training.vocabulary import FILE
from tests.training.helpers import (
    checkpoints,
    content,
    differing,
    records,
    result,
    resumed,
    train_until,
    trainer_for,
    without_clock,
)
from tests.training.texts import AWD, tiny_text, write_text

NT_ASGD: dict[str, Any] = {
    "optimizer.name": "nt_asgd",
    "optimizer.lr": 3.0,
    "optimizer.patience": 1,
    "evaluate.every_batches": 2,
    "fptt.alpha": 0.05,
}
CASES: dict[str, dict[str, Any]] = {
    "random_lengths": {"task.length_std": 2.0},
    "characters": {
        "task.token_level": "character",
        "model.dropout": 0.3,
        "model.embedding": 3,
        "train.micro_batch_size": 2,
    },
    "awd": AWD,
    "awd_masks_of_windows": {
        **AWD,
        "model.dropout_mask_scope": "window",
        "algorithm": "tbptt_accumulated",
        "train.precision": "bf16",
    },
    "awd_experts": {**AWD, "model.num_experts": 3, "model.last_hidden": 7, "model.dropout_latent": 0.3},
    "awd_second_gradient": {**AWD, "fptt.update_rule": "second_gradient"},
    "nt_asgd": {**NT_ASGD, "task.length_std": 2.0},
    "nt_asgd_reset": {**NT_ASGD, "fptt.reset_weights": True, "fptt.reset_dual": True},
    "consensus": {"parallel.strategy": "consensus", "model.layer": "antisymmetric", "model.layers": 2},
}


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "train")]


def test_interrupted_twice_is_uninterrupted(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for case, overrides in CASES.items():
        with subtests.test(case=case):
            straight, parts = tmp_path / case / "straight", tmp_path / case / "parts"
            train(tiny_text(straight, overrides, batches=14))
            config = tiny_text(parts, overrides, batches=14)
            train_until(config, 5)  # the state is carried
            train_until(resumed(config), 12)
            train(resumed(config))
            one, other = content(checkpoints(straight)[-1]), content(checkpoints(parts)[-1])
            assert differing(one, other) == []
            assert losses(straight) == losses(parts)
            assert without_clock(records(straight, "evaluation")) == without_clock(records(parts, "evaluation"))
            assert without_clock(result(straight)) == without_clock(result(parts))


class Calls:
    """What the network was given and gave back, window by window, through torch's own hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.incoming: list[Any] = []
        self.outgoing: list[Any] = []
        self.steps: list[int] = []
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def _before(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self.model.training:
            self.steps.append(len(arguments[0]))
            self.incoming.append(arguments[1] if len(arguments) > 1 else None)

    def _after(self, _: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
        if self.model.training:
            self.outgoing.append(output[1])


def batches(trainer: Trainer, number: int) -> Iterator[None]:
    """Train so many batches, one at each turn."""

    class Nothing:
        def training(self, record: dict[str, Any]) -> None: ...

    for _ in range(number):
        trainer._train_batch(Nothing())  # pyright: ignore[reportArgumentType]
        yield


def plain(state: Any) -> list[Tensor]:
    return tree_leaves(hidden_of(state))


@pytest.mark.parametrize("overrides", [{}, AWD], ids=["lstm", "awd"])
def test_every_step_goes_through_the_network_once_and_the_state_is_carried(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trainer_for(tiny_text(tmp_path / "run", {**overrides, "task.length_std": 2.0}))
    calls = Calls(trainer.network)
    lengths = []
    for _ in batches(trainer, 4):
        lengths.append(sum(calls.steps) - sum(lengths))
    assert len(calls.steps) == 4 * 3  # K windows a sequence and no pass more, to log or to carry the state
    stream = [trainer.task.train_batch(0, 4 * i, 4, slice(0, 4)).inputs for i in range(4)]
    assert lengths == [len(inputs) for inputs in stream]
    assert len(set(lengths)) > 1
    assert calls.incoming[0] is None
    for after, before in zip(calls.outgoing, calls.incoming[1:], strict=False):
        assert all(torch.equal(a, b) for a, b in zip(plain(after), plain(before), strict=True))
        assert not any(t.requires_grad for t in plain(before))
    new_sequence = calls.incoming[3]
    assert hidden_of(new_sequence) is new_sequence  # its masks are drawn anew


def test_the_state_begins_with_zeros_at_an_epoch(tmp_path: Path) -> None:
    trainer = trainer_for(tiny_text(tmp_path / "run", batches=30))
    calls = Calls(trainer.network)
    for _ in batches(trainer, trainer.batches_per_epoch + 1):
        pass
    assert [i for i, state in enumerate(calls.incoming) if state is None] == [0, 3 * trainer.batches_per_epoch]


@pytest.mark.parametrize("masks", ["sequence", "window"])
def test_masks_are_drawn_once_a_sequence_or_once_a_window(masks: str, tmp_path: Path) -> None:
    trainer = trainer_for(
        tiny_text(tmp_path / "run", {**AWD, "model.dropout_mask_scope": masks, "model.activation_penalty": 0})
    )
    calls = Calls(trainer.network)
    for _ in batches(trainer, 2):
        pass
    carried: list[Any] = [getattr(state, "masks", None) for state in calls.outgoing]
    if masks == "window":
        assert carried == [None] * 6
        return
    for first, *others in (carried[:3], carried[3:]):
        assert first
        assert all(torch.equal(first[name], each[name]) for each in others for name in first)
    assert any(not torch.equal(carried[0][name], carried[3][name]) for name in carried[0])


def test_the_second_gradient_of_algorithm2_sees_the_first_ones_masks(tmp_path: Path) -> None:
    trainer = trainer_for(tiny_text(tmp_path / "run", {**AWD, "fptt.update_rule": "second_gradient"}))
    calls = Calls(trainer.network)
    for _ in batches(trainer, 2):
        pass
    assert len(calls.steps) == 2 * 3 * 2
    for first, second in zip(calls.outgoing[::2], calls.incoming[1::2], strict=True):
        assert first.masks
        assert all(torch.equal(first.masks[name], second.masks[name]) for name in first.masks)
    for first, second in zip(calls.incoming[::2], calls.incoming[1::2], strict=True):
        one, other = hidden_of(first), hidden_of(second)
        assert one is other or all(torch.equal(a, b) for a, b in zip(plain(one), plain(other), strict=True))


def test_the_rate_is_in_proportion_to_the_length(tmp_path: Path) -> None:
    overrides = {"task.length_std": 2.0, "optimizer.name": "sgd", "optimizer.lr": 0.5, "algorithm": "tbptt"}
    trainer = trainer_for(tiny_text(tmp_path / "run", {**overrides, "train.max_norm": None}))
    rates: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda *_: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    lengths = []
    for i, _ in enumerate(batches(trainer, 4)):
        lengths.append(len(trainer.task.train_batch(0, 4 * i, 4, slice(0, 4)).inputs))
    assert rates == [0.5 * length / 12 for length in lengths for _ in range(3)]
    assert trainer.optimizer.param_groups[0]["lr"] == 0.5


def test_the_rate_is_plain_where_lengths_are_fixed(tmp_path: Path) -> None:
    trainer = trainer_for(tiny_text(tmp_path / "run"))
    rates: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda *_: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    for _ in batches(trainer, 2):
        pass
    assert set(rates) == {1e-2}


def test_without_a_force_one_window_is_truncated_backpropagation(tmp_path: Path) -> None:
    """K = 1, α = 0 is BPTT over each sequence, bit for bit; both carry the state."""
    train(tiny_text(tmp_path / "one", {"fptt.windows": 1, "fptt.alpha": 0}))
    train(tiny_text(tmp_path / "bptt", {"algorithm": "bptt"}))
    assert losses(tmp_path / "one") == losses(tmp_path / "bptt")


def test_equal_windows_in_one_graph_are_bptt(tmp_path: Path) -> None:
    """Where each step has its own target, bptt_aux is bptt up to rounding."""
    for algorithm in ("bptt", "bptt_aux"):
        train(tiny_text(tmp_path / algorithm, {"algorithm": algorithm}))
    assert losses(tmp_path / "bptt") == pytest.approx(losses(tmp_path / "bptt_aux"), rel=1e-5)


def test_penalties_join_the_objective_and_not_the_loss(tmp_path: Path) -> None:
    none = {"model.activation_penalty": 0.0, "model.temporal_penalty": 0.0}
    train(tiny_text(tmp_path / "with", {**AWD, "model.activation_penalty": 50.0}, batches=3))
    train(tiny_text(tmp_path / "without", {**AWD, **none}, batches=3))
    with_, without = losses(tmp_path / "with"), losses(tmp_path / "without")
    norms = [records(tmp_path / name, "train")[0]["gradient_norm"] for name in ("with", "without")]
    assert with_[0] == pytest.approx(without[0], rel=1e-2)  # the weights have moved little
    assert with_ != without
    assert norms[0] != norms[1]


@pytest.mark.parametrize("algorithm", ["tbptt_accumulated", "bptt", "bptt_aux", "tbptt"])
def test_a_penalty_counts_once_a_sequence_for_every_baseline(algorithm: str, tmp_path: Path) -> None:
    """A network without dropout: the gradient of loss + penalty, computed here over the windows of one sequence."""
    silent = {f"model.{name}": 0.0 for name in ("weight_drop", *(f"dropout_{n}" for n in DROPPED))}
    overrides = {**AWD, **silent, "algorithm": algorithm, "model.temporal_penalty": 0.0, "train.max_norm": None}
    trainer = trainer_for(tiny_text(tmp_path / "run", {**overrides, "optimizer.name": "sgd"}))
    weights = [p.detach().clone() for p in trainer.network.parameters()]
    batch = trainer.task.train_batch(0, 0, 4, slice(0, 4))
    seen: list[Tensor] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([g.flatten().clone() for g in gradients(trainer.network)]))
    )
    for _ in batches(trainer, 1):
        pass
    with torch.no_grad():
        for p, w in zip(trainer.network.parameters(), weights, strict=True):
            p.copy_(w)
    trainer.network.zero_grad()
    trainer.network.train()
    first = slice(0, 4) if algorithm == "tbptt" else slice(0, 12)
    state, objective = None, torch.zeros(())
    parts = [first] if algorithm in ("tbptt", "bptt") else [slice(0, 4), slice(4, 8), slice(8, 12)]
    for part in parts:
        output, state = trainer.network(batch.inputs[part], state)
        target = batch.targets[part]
        log = output.log_softmax(-1).gather(-1, target.unsqueeze(-1))
        objective = objective + (-log.mean() + hidden_penalty(trainer, batch.inputs, part)) / len(parts)
        if algorithm == "tbptt_accumulated":
            state = tuple((h.detach(), c.detach()) for h, c in hidden_of(state))
    objective.backward()
    expected = torch.cat([g.flatten() for g in gradients(trainer.network)])
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-7)


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


DROPPED = ("embedding", "input", "hidden", "output")


def hidden_penalty(trainer: Trainer, inputs: Tensor, part: slice) -> Tensor:
    """2 · mean h² of the last layer over the window, from the layers themselves, the state cut as the run cuts it."""
    network: Any = trainer.network
    cut = trainer.config.algorithm == "tbptt_accumulated"
    h = network.embedding(inputs[: part.stop])
    for layer in network.recurrent:
        if cut and part.start:
            before, state = layer(h[: part.start].detach())
            after, _ = layer(h[part.start :], tuple(s.detach() for s in state))
            h = torch.cat([before.detach(), after])
        else:
            h, _ = layer(h)
    return 2.0 * h[part].square().mean()


def test_the_average_is_what_is_evaluated_once_it_has_begun(tmp_path: Path) -> None:
    train(tiny_text(tmp_path / "run", {**NT_ASGD, "optimizer.lr": 8.0}, batches=24))
    which = [record["weights"] for record in records(tmp_path / "run", "evaluation") if record["split"] == "validation"]
    assert which[0] == "center"
    assert which[-1] == "average"
    assert which == sorted(which, key=["center", "average"].index)


def test_evaluation_goes_through_the_text_with_one_state(tmp_path: Path) -> None:
    """The metric is that of the whole text read at once by each stream, and training continues as if not evaluated."""
    trainer = trainer_for(tiny_text(tmp_path / "run"))
    task = trainer.task
    assert isinstance(task, Language)
    found = evaluate(trainer.network, task, trainer.engine.everyone, "validation", trainer.device)[task.metric]
    (whole,) = task.chunks("validation", streams=10, steps=10**6)
    with torch.no_grad():
        output, _ = trainer.network.eval()(whole.inputs)
    log = output.double().log_softmax(-1).flatten(0, 1)
    targets = whole.targets.flatten()
    kept = targets >= 0
    nll = -log[kept].gather(-1, targets[kept].unsqueeze(-1)).mean()
    assert found == pytest.approx(math.exp(float(nll)), rel=1e-6)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    config = tiny_text(tmp_path / "run", batches=6)
    train_until(config, 3)
    (tmp_path / "text" / "train.txt").write_text("other words stand here " * 200 + "\n")
    before = sorted((tmp_path / "run").rglob("*"))
    for name in ("valid", "test"):
        (tmp_path / "text" / f"{name}.txt").write_text("other words\n" * 30)
    with pytest.raises(DataError, match=r"train\.txt is not the text that .*/run was trained on: put that one back"):
        train(resumed(config))
    assert sorted((tmp_path / "run").rglob("*")) == before
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(DataError, match=r"its vocabulary \(6 symbols\) is not the checkpoint's \(10 symbols\)"):
        train(resumed(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 3 batches, with its text beside it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_text(run, batches=3))
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, whose text is its own."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    config = tmp_path / "copy/run/config.yaml"
    config.write_text(config.read_text().replace(str(finished.parent), str(tmp_path / "copy")))
    return tmp_path / "copy/run"


def test_held_out_words_change_nothing_of_a_run(copied: Path) -> None:
    """They are "<unk>", in the same run resumed, and in a new one."""
    before, vocabulary = result(copied), (copied / FILE).read_bytes()
    with (copied.parent / "text/test.txt").open("a") as file:
        file.write("x\n")
    assert evaluate_run(copied)["validation"] == before["validation"]
    config = apply_overrides(load(copied / "config.yaml"), {"resume": "auto", "train.max_batches": 5})
    train(config)
    assert (copied / FILE).read_bytes() == vocabulary
    after = result(copied)
    assert after["unknown_tokens"]["test"] == {"share": 1 / 82, "commonest": {"x": 1}}
    assert after["parameters"] == before["parameters"]
    train(apply_overrides(config, {"resume": "never", "run.dir": str(copied.parent / "new")}))
    new = result(copied.parent / "new")
    assert (new["validation"], new["value"], new["parameters"]) == (
        after["validation"],
        after["value"],
        after["parameters"],
    )


def test_evaluation_and_export_take_the_runs_vocabulary(copied: Path) -> None:
    before = result(copied)
    lines = (copied.parent / "text/train.txt").read_text().replace("a", "new")
    (copied.parent / "text/train.txt").write_text(lines)
    found = evaluate_run(copied)
    assert (found["validation"], found["test"]) == (before["validation"], before["value"])
    exported = json.loads((export_run(copied, copied / "export") / "model.json").read_text())
    vocabulary = json.loads((copied / FILE).read_text())["vocabulary"]
    assert sorted(vocabulary) == sorted(["<eos>", "<unk>", *"abcdefgh"])
    assert exported["input"]["vocabulary"] == vocabulary


@pytest.mark.parametrize("damage", ["cut", "flipped", "list"])
def test_a_damaged_vocabulary_is_made_again_from_the_text(
    copied: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, before = copied / FILE, result(copied)
    content = file.read_text()
    vocabulary = json.loads(content)
    file.write_text({"cut": content[:-30], "flipped": content.replace('"h"', '"i"'), "list": "[1]"}[damage])
    assert evaluate_run(copied)["test"] == before["value"]
    assert f"{file} is damaged" in caplog.text
    train(apply_overrides(load(copied / "config.yaml"), {"resume": "auto", "train.max_batches": 4}))
    assert json.loads(file.read_text()) == vocabulary


def test_a_text_too_short_says_what_is_needed(tmp_path: Path) -> None:
    config = tiny_text(tmp_path / "run")
    write_text(tmp_path / "text", words=20)
    with pytest.raises(DataError, match=r"task\.length"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_dealing_streams_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.partition=fixed does not go with task\.name=language"):
        apply_overrides(tiny_text(tmp_path / "run"), {"data.partition": "fixed"})


def test_a_dry_run_counts_the_average(tmp_path: Path) -> None:
    trainer = trainer_for(tiny_text(tmp_path / "run", NT_ASGD))
    size = sum(p.numel() * 4 for p in trainer.network.parameters())
    assert dry_run(trainer).memory[MOMENTS] == size
