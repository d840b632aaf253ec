"""The rules that tie several keys together: what is refused, and what the message says."""

import math
import re
from itertools import product
from typing import Any

import pytest

from fptt_dist.algorithm.windows import sequence_windows
from fptt_dist.config import ArraysTask, AwdLSTM, Config, ConfigError, Train, apply_overrides

BASE = Config(train=Train(max_epochs=1))


def message(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


def test_a_run_must_end() -> None:
    assert message(train__max_epochs=None) == (
        "train.max_batches=null and train.max_epochs=null leave the run without an end: type one of them, "
        "such as train.max_epochs=10 or train.max_batches=1000 (override train.max_epochs=null)"
    )


def test_micro_batches_divide_the_batch() -> None:
    text = message(train__micro_batch_size=48)
    assert text.startswith("train.micro_batch_size=48 does not divide train.batch_size=128: ")
    assert "train.micro_batch_size=32" in text
    assert apply_overrides(BASE, {"train.micro_batch_size": 32}).train.micro_batch_size == 32


def test_windows_fit_in_the_sequence() -> None:
    for algorithm in ("fptt", "tbptt", "tbptt_accumulated", "bptt_aux"):
        assert re.fullmatch(
            r"fptt\.windows=201 is more than the steps of a sequence, task\.length=200: type fptt\.windows=200.*"
            r"\(override fptt\.windows=201\)",
            message(algorithm=algorithm, fptt__windows=201),
        ), algorithm


def test_a_window_fits_in_the_sequence() -> None:
    assert message(fptt__window_length=201) == (
        "fptt.window_length=201 is more than the steps of a sequence, task.length=200: type fptt.window_length=200 or "
        "less, or fptt.window_length=null for round(sqrt(length)) windows (override fptt.window_length=201)"
    )


def test_either_windows_or_their_length() -> None:
    assert message(fptt__windows=10, fptt__window_length=20) == (
        "fptt.windows=10 and fptt.window_length=20 are both set: type fptt.windows=null, or fptt.window_length=null "
        "(override fptt.windows=10, override fptt.window_length=20)"
    )
    text = {"task": {"name": "language", "length": 70, "length_std": 5}}
    assert apply_overrides(BASE, {**text, "fptt.window_length": 10}).windows == 7
    base = apply_overrides(BASE, {"fptt.windows": 10})
    assert apply_overrides(base, {"fptt.windows": None, "fptt.window_length": 40}).windows == 5


def test_bptt_ignores_windows() -> None:
    for key in ("windows", "window_length"):
        for remainder in ("balanced", "append"):
            keys = {"algorithm": "bptt", f"fptt.{key}": 201, "fptt.window_remainder": remainder}
            config = apply_overrides(BASE, keys)
            assert (config.windows, config.windows_run) == (1, 1)


def test_dealing_by_label_needs_labels() -> None:
    for task in ("adding", "copying"):
        assert message(data__partition="by_label", task__name=task).startswith(
            f"data.partition=by_label needs a task with one label per sequence, task.name={task} has none: "
            "type data.partition=shuffled (or fixed), or task.name=pixels"
        )
        for shards in ("shuffled", "fixed"):
            assert apply_overrides(BASE, {"data.partition": shards, "task.name": task}).data.partition == shards
    assert apply_overrides(BASE, {"data.partition": "by_label", "task.name": "pixels"}).data.partition == "by_label"
    assert BASE.data.partition == "shuffled"
    arrays = {"task.name": "arrays", "task.train": "x.npz", "task.length": 9, "task.bucketing": False}
    assert apply_overrides(BASE, {**arrays, "data.partition": "by_label"}).data.partition == "by_label"
    with pytest.raises(ConfigError, match=r"task\.name=arrays with task.target=value has none: type data.partition"):
        apply_overrides(BASE, {**arrays, "data.partition": "by_label", "task.target": "value"})


def test_keys_of_arrays_that_would_have_no_effect() -> None:
    arrays = {"task.name": "arrays", "task.train": "x.npz", "task.length": 9}
    for keys, text in (
        ({"task.horizon": 3}, "task.horizon=3 has no effect with task.target=class"),
        ({"task.target": "value", "task.class_weights": "balanced"}, "task.class_weights=balanced has no effect with"),
        ({"task.target": "step_class", "task.target_estimate": "class_mean"}, "type task.target=class"),
        ({"task.series_column": "id"}, "task.series_column=id has no effect on task.train=x.npz, which is no table"),
        ({"task.target_columns": ["y", "z"]}, "task.target_columns=[y, z] has no effect on task.train=x.npz"),
        ({"task.test_share": 0.9}, "task.validation_share=0.15 and task.test_share=0.9 leave nothing to train on"),
        ({"data.partition": "fixed"}, "data.partition=fixed does not go with task.bucketing=true"),
    ):
        with pytest.raises(ConfigError) as error:
            apply_overrides(BASE, {**arrays, **keys})
        assert text in str(error.value)
    tables = {**arrays, "task.train": "x.csv", "task.series_column": "id", "task.target_columns": ["y"]}
    table = apply_overrides(BASE, tables).task
    assert isinstance(table, ArraysTask)
    assert table.is_table
    forecast = {**arrays, "task.target": "forecast", "task.horizon": 3, "task.target_columns": ["0"]}
    apply_overrides(BASE, forecast)
    with pytest.raises(ConfigError, match=r"task\.length: must be set; allowed: int >= 2"):
        apply_overrides(BASE, {"task.name": "arrays", "task.train": "x.npz"})


def test_preconditioned_needs_a_preconditioner() -> None:
    text = message(fptt__metric="preconditioned", optimizer__name="sgd")
    assert "fptt.metric=preconditioned" in text
    assert "optimizer.name=sgd has none: type fptt.metric=euclidean, or optimizer.name=adam (or adamw, rmsprop)" in text
    for name in ("adam", "adamw", "rmsprop"):
        apply_overrides(BASE, {"fptt.metric": "preconditioned", "optimizer.name": name})


def test_preconditioned_needs_the_explicit_update() -> None:
    for update in ("proximal", "second_gradient"):
        text = message(fptt__metric="preconditioned", fptt__update_rule=update)
        assert text.startswith(f"fptt.update_rule={update} does not go with fptt.metric=preconditioned")
        assert "type fptt.update_rule=gradient, or fptt.metric=euclidean" in text


def test_algorithm2_needs_a_pull() -> None:
    text = message(fptt__update_rule="second_gradient", fptt__alpha=0)
    assert text.startswith(
        "fptt.update_rule=second_gradient needs fptt.alpha > 0, not fptt.alpha=0.0: type fptt.alpha=0.5"
    )


def test_rules_of_fptt_leave_other_algorithms_alone() -> None:
    for algorithm in ("tbptt", "tbptt_accumulated", "bptt_aux", "bptt"):
        overrides = {"algorithm": algorithm, "fptt.metric": "preconditioned", "optimizer.name": "sgd"}
        apply_overrides(BASE, {**overrides, "fptt.update_rule": "proximal"})
        apply_overrides(BASE, {"algorithm": algorithm, "fptt.update_rule": "second_gradient", "fptt.alpha": 0})


def test_clip_goes_with_every_update() -> None:
    for update, clip in product(("gradient", "proximal", "second_gradient"), ("total", "gradient")):
        assert apply_overrides(BASE, {"fptt.update_rule": update, "fptt.clip_scope": clip}).fptt.clip_scope == clip


def test_nesterov_needs_momentum() -> None:
    text = message(optimizer={"name": "sgd", "nesterov": True})
    assert text.startswith("optimizer.nesterov=true has no meaning with optimizer.momentum=0.0: type")
    apply_overrides(BASE, {"optimizer": {"name": "sgd", "nesterov": True, "momentum": 0.9}})


def test_milestones_increase() -> None:
    for milestones in ([3, 2], [2, 2, 3]):
        text = message(schedule={"name": "step", "milestones": milestones})
        assert text.startswith(f"schedule.milestones={milestones} must increase: type schedule.milestones=[2, 3]")


def test_all_conflicts_are_told_at_once() -> None:
    text = message(train__max_epochs=None, train__micro_batch_size=3, fptt__windows=300)
    assert [line.split("=")[0] for line in text.splitlines()] == [
        "train.max_batches",
        "train.micro_batch_size",
        "fptt.windows",
    ]


def test_conflicts_do_not_hide_wrong_values() -> None:
    text = message(train__max_epochs=None, fptt__windows=300, fptt__alpha=-1, seed="x")
    assert "fptt.alpha: -1 is not allowed" in text
    assert "seed: x is not allowed" in text


def test_a_language_model_needs_a_text() -> None:
    text = message(model__layer="awd_lstm")
    assert text.startswith("model.layer=awd_lstm is a language model, and task.name=adding is no text: ")
    assert "type task.name=language, or model.layer=lstm" in text
    config = apply_overrides(BASE, {"model.layer": "awd_lstm", "task.name": "language"})
    assert isinstance(config.model, AwdLSTM)


def test_an_embedding_needs_symbols() -> None:
    text = message(model__embedding=5)
    assert text.startswith("model.embedding=5 is for words or characters, and task.name=adding is no text: type")
    assert apply_overrides(BASE, {"model.embedding": 5, "task.name": "language"})


def test_a_tied_readout_has_the_embeddings_size() -> None:
    text = message(task__name="language", model={"layer": "awd_lstm", "embedding": 5, "last_hidden": 6})
    assert text.startswith("model.tie_weights=true needs as many units in the last layer as the embedding has numbers")
    for more in ({"tie_weights": False}, {"num_experts": 2}, {"last_hidden": None}):
        model = {"layer": "awd_lstm", "embedding": 5, "last_hidden": 6, **more}
        assert apply_overrides(BASE, {"task.name": "language", "model": model})


def test_streams_cannot_be_dealt() -> None:
    assert message(task__name="language", data__partition="fixed").startswith("data.partition=fixed does not go with")
    assert message(task__name="language", data__partition="by_label").startswith(
        "data.partition=by_label needs a task with"
    )


def test_extra_windows_need_one_length() -> None:
    text = message(task={"name": "language", "length_std": 5}, fptt__window_remainder="append")
    assert text.startswith("fptt.window_remainder=append would give sequences of different lengths different numbers")
    assert apply_overrides(BASE, {"task.name": "language", "fptt.window_remainder": "append"})


def test_a_minimum_count_is_of_a_text_of_ones_own() -> None:
    text = message(task={"name": "language", "min_count": 3})
    assert text.startswith("task.min_count=3 has no effect on the Penn Treebank, which has its own <unk>: leave it out")
    own = apply_overrides(BASE, {"task.name": "language", "task.text_dir": "x", "task.min_count": 3})
    assert apply_overrides(own, {"task.min_count": 2, "task.text_dir": None})


def test_the_windows_that_are_run() -> None:
    def resolved(length: int, remainder: str, **keys: int) -> tuple[int, int, int | None]:
        overrides = {f"fptt.{key}": value for key, value in keys.items()}
        config = apply_overrides(BASE, {"task.length": length, "fptt.window_remainder": remainder, **overrides})
        windows = sequence_windows(length, config.windows, config.window_size)
        assert config.windows_run == len(windows)
        return config.windows, config.windows_run, config.window_size

    assert resolved(784, "append", windows=10) == (10, 11, 78)
    assert resolved(784, "balanced", windows=10) == (10, 10, None)
    assert resolved(780, "append", windows=10) == (10, 10, 78)
    assert resolved(784, "append", window_length=78) == (11, 11, 78)
    assert resolved(784, "balanced", window_length=78) == (11, 11, None)
    assert resolved(784, "append", window_length=784) == (1, 1, 784)
    for remainder in ("balanced", "append"):
        for n in (7, 49, 112):
            for k in range(1, n + 1):
                resolved(n, remainder, windows=k)
                windows, run, _ = resolved(n, remainder, window_length=k)
                assert windows == run == math.ceil(n / k)


def test_steps_fill_the_image() -> None:
    for dataset, size, pixels, near in (("mnist", 784, 30, 28), ("cifar10", 1024, 28, 32), ("cifar10", 1024, 7, 8)):
        text = message(task={"name": "pixels", "dataset": dataset, "pixels_per_step": pixels})
        assert text.startswith(f"task.pixels_per_step={pixels} does not divide an image's {size} pixels: ")
        assert f"type a divisor such as task.pixels_per_step={near}" in text


def test_plain_sgd_has_no_preconditioner() -> None:
    text = message(optimizer__name="nt_asgd", fptt__metric="preconditioned")
    assert "optimizer.name=nt_asgd has none" in text


def test_a_graph_needs_the_compiled_update() -> None:
    assert message(train__cuda_graph=True).startswith(
        "train.cuda_graph=true needs the compiled update: type train.compile_update=true, or train.cuda_graph=false"
    )
    assert apply_overrides(BASE, {"train.cuda_graph": True, "train.compile_update": True}).train.cuda_graph
