"""The rules that tie several keys together: what is refused, and what the message says."""

from typing import Any

import pytest

from fptt_dist.algorithm.windows import Remainder, sequence_windows
from fptt_dist.config import Config, ConfigError, Train, apply_overrides

BASE = Config(train=Train(epochs=1))


def message(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


def test_a_run_must_end() -> None:
    assert message(train__epochs=None) == (
        "train.batches=null and train.epochs=null leave the run without an end: type one of them, "
        "such as train.epochs=10 or train.batches=1000 (override train.epochs=null)"
    )


def test_micro_batches_divide_the_batch() -> None:
    text = message(train__micro_batch_size=48)
    assert text.startswith("train.micro_batch_size=48 does not divide train.batch_size=128: ")
    assert "train.micro_batch_size=32" in text
    assert apply_overrides(BASE, {"train.micro_batch_size": 32}).train.micro_batch_size == 32


@pytest.mark.parametrize("algorithm", ["fptt", "online", "tbptt", "bptt_aux"])
def test_windows_fit_in_the_sequence(algorithm: str) -> None:
    text = message(algorithm=algorithm, fptt__windows=201)
    assert text.startswith(
        "fptt.windows=201 is more than the steps of a sequence, task.length=200: type fptt.windows=200"
    )
    assert text.endswith("(override fptt.windows=201)")


def test_bptt_ignores_windows() -> None:
    assert apply_overrides(BASE, {"algorithm": "bptt", "fptt.windows": 201}).windows == 1


@pytest.mark.parametrize("task", ["adding", "copying"])
def test_dealing_by_label_needs_labels(task: str) -> None:
    text = message(data__shards="by_label", task__name=task)
    assert text.startswith(
        f"data.shards=by_label needs a task with labels, task.name={task} has none: "
        "type data.shards=shuffled (or fixed), or task.name=pixels"
    )
    for shards in ("shuffled", "fixed"):
        assert apply_overrides(BASE, {"data.shards": shards, "task.name": task}).data.shards == shards
    assert apply_overrides(BASE, {"data.shards": "by_label", "task.name": "pixels"}).data.shards == "by_label"
    assert BASE.data.shards == "shuffled"


def test_preconditioned_needs_a_preconditioner() -> None:
    text = message(fptt__metric="preconditioned", optimizer__name="sgd")
    assert "fptt.metric=preconditioned" in text
    assert "optimizer.name=sgd has none: type fptt.metric=euclidean, or optimizer.name=adam (or adamw, rmsprop)" in text
    for name in ("adam", "adamw", "rmsprop"):
        apply_overrides(BASE, {"fptt.metric": "preconditioned", "optimizer.name": name})


@pytest.mark.parametrize("update", ["prox", "algorithm2"])
def test_preconditioned_needs_the_explicit_update(update: str) -> None:
    text = message(fptt__metric="preconditioned", fptt__update=update)
    assert text.startswith(f"fptt.update={update} does not go with fptt.metric=preconditioned")
    assert "type fptt.update=explicit, or fptt.metric=euclidean" in text


def test_algorithm2_needs_a_pull() -> None:
    text = message(fptt__update="algorithm2", fptt__alpha=0)
    assert text.startswith("fptt.update=algorithm2 needs fptt.alpha > 0, not fptt.alpha=0.0: type fptt.alpha=0.5")


@pytest.mark.parametrize("algorithm", ["online", "tbptt", "bptt_aux", "bptt"])
def test_rules_of_fptt_leave_other_algorithms_alone(algorithm: str) -> None:
    overrides = {"algorithm": algorithm, "fptt.metric": "preconditioned", "optimizer.name": "sgd"}
    apply_overrides(BASE, {**overrides, "fptt.update": "prox"})
    apply_overrides(BASE, {"algorithm": algorithm, "fptt.update": "algorithm2", "fptt.alpha": 0})


@pytest.mark.parametrize("update", ["explicit", "prox", "algorithm2"])
@pytest.mark.parametrize("clip", ["total", "gradient"])
def test_clip_goes_with_every_update(update: str, clip: str) -> None:
    assert apply_overrides(BASE, {"fptt.update": update, "fptt.clip": clip}).fptt.clip == clip


def test_nesterov_needs_momentum() -> None:
    text = message(optimizer={"name": "sgd", "nesterov": True})
    assert text.startswith("optimizer.nesterov=true has no meaning with optimizer.momentum=0.0: type")
    apply_overrides(BASE, {"optimizer": {"name": "sgd", "nesterov": True, "momentum": 0.9}})


@pytest.mark.parametrize("milestones", [[3, 2], [2, 2, 3]])
def test_milestones_increase(milestones: list[int]) -> None:
    text = message(schedule={"name": "step", "milestones": milestones})
    assert text.startswith(f"schedule.milestones={milestones} must increase: type schedule.milestones=[2, 3]")


def test_all_conflicts_are_told_at_once() -> None:
    text = message(train__epochs=None, train__micro_batch_size=3, fptt__windows=300)
    assert [line.split("=")[0] for line in text.splitlines()] == [
        "train.batches",
        "train.micro_batch_size",
        "fptt.windows",
    ]


def test_conflicts_do_not_hide_wrong_values() -> None:
    text = message(train__epochs=None, fptt__windows=300, fptt__alpha=-1, seed="x")
    assert "fptt.alpha: -1 is not allowed" in text
    assert "seed: x is not allowed" in text


def test_a_language_model_needs_a_text() -> None:
    text = message(model__cell="awd_lstm")
    assert text.startswith("model.cell=awd_lstm is a language model, and task.name=adding is no text: ")
    assert "type task.name=language, or model.cell=lstm" in text
    assert apply_overrides(BASE, {"model.cell": "awd_lstm", "task.name": "language"}).model.cell == "awd_lstm"


def test_an_embedding_needs_symbols() -> None:
    text = message(model__embedding=5)
    assert text.startswith("model.embedding=5 is for words or characters, and task.name=adding is no text: type")
    assert apply_overrides(BASE, {"model.embedding": 5, "task.name": "language"})


def test_a_tied_readout_has_the_embeddings_size() -> None:
    text = message(task__name="language", model={"cell": "awd_lstm", "embedding": 5, "last_hidden": 6})
    assert text.startswith("model.tied=true needs as many units in the last layer as the embedding has numbers")
    for more in ({"tied": False}, {"experts": 2}, {"last_hidden": None}):
        model = {"cell": "awd_lstm", "embedding": 5, "last_hidden": 6, **more}
        assert apply_overrides(BASE, {"task.name": "language", "model": model})


def test_streams_cannot_be_dealt() -> None:
    assert message(task__name="language", data__shards="fixed").startswith("data.shards=fixed does not go with")
    assert message(task__name="language", data__shards="by_label").startswith("data.shards=by_label needs a task with")


def test_extra_windows_need_one_length() -> None:
    text = message(task={"name": "language", "deviation": 5}, fptt__remainder="extra")
    assert text.startswith("fptt.remainder=extra would give sequences of different lengths different numbers")
    assert apply_overrides(BASE, {"task.name": "language", "fptt.remainder": "extra"})


@pytest.mark.parametrize(
    ("length", "windows", "remainder", "run"), [(784, 10, "extra", 11), (784, 10, "spread", 10), (780, 10, "extra", 10)]
)
def test_the_windows_that_are_run(length: int, windows: int, remainder: str, run: int) -> None:
    config = apply_overrides(
        BASE, {"task.length": length, "fptt.windows": windows, "fptt.remainder": remainder, "algorithm": "fptt"}
    )
    assert (config.windows, config.windows_run) == (windows, run)


@pytest.mark.parametrize("length", [7, 49, 112])
@pytest.mark.parametrize("remainder", ["extra", "spread"])
def test_as_many_windows_as_the_sequence_is_cut_into(length: int, remainder: Remainder) -> None:
    for windows in range(1, length + 1):
        config = apply_overrides(
            BASE, {"task.length": length, "fptt.windows": windows, "fptt.remainder": remainder, "algorithm": "fptt"}
        )
        assert config.windows_run == len(sequence_windows(length, windows, remainder))


@pytest.mark.parametrize(("dataset", "pixels", "near"), [("mnist", 30, 28), ("cifar10", 28, 32), ("cifar10", 7, 8)])
def test_steps_fill_the_image(dataset: str, pixels: int, near: int) -> None:
    text = message(task={"name": "pixels", "dataset": dataset, "pixels_per_step": pixels})
    size = 1024 if dataset == "cifar10" else 784
    assert text.startswith(f"task.pixels_per_step={pixels} does not divide an image's {size} pixels: ")
    assert f"type a divisor such as task.pixels_per_step={near}" in text


def test_plain_sgd_has_no_preconditioner() -> None:
    text = message(optimizer__name="nt_asgd", fptt__metric="preconditioned")
    assert "optimizer.name=nt_asgd has none" in text


def test_a_graph_needs_the_compiled_update() -> None:
    assert message(train__graph=True).startswith(
        "train.graph=true needs the compiled update: type train.compile=true, or train.graph=false"
    )
    assert apply_overrides(BASE, {"train.graph": True, "train.compile": True}).train.graph
