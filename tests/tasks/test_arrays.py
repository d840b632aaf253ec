"""The task arrays: its batches beside plain loops over the series, its splits, its formats."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fptt_dist.tasks import DataError
from fptt_dist.tasks.arrays import Arrays
from fptt_dist.tasks.data import scaling
from fptt_dist.tasks.data.scaling import ROWS, Statistics, blocks, filled
from fptt_dist.tasks.data.series import RawSeries, read_arrays
from fptt_dist.tasks.series_task import POOL
from fptt_dist.training.data_workers import pack

CHANNELS, LONGEST = 2, 9
LABELS = np.array(["no", "perhaps", "yes"])


def lengths_of(series: int = 40, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).integers(1, LONGEST + 1, series)


def rows_like(lengths: NDArray, seed: int = 1, gaps: float = 0.0) -> NDArray:
    generator = np.random.default_rng(seed)
    rows = generator.normal(5.0, 3.0, (lengths.sum(), CHANNELS)).astype(np.float32)
    rows[generator.random(rows.shape) < gaps] = np.nan
    return rows


def raw_of(target: str, lengths: NDArray | None = None, *, seed: int = 1, gaps: float = 0.0, **more: Any) -> RawSeries:
    lengths = lengths_of() if lengths is None else lengths
    generator = np.random.default_rng(seed + 100)
    size = lengths.sum() if target.startswith("step") else len(lengths)
    targets = {
        "class": lambda: LABELS[np.arange(size) % 3],
        "step_class": lambda: LABELS[generator.integers(0, 3, size)],
        "value": lambda: generator.normal(-2.0, 4.0, (size, 2)),
        "step_value": lambda: generator.normal(-2.0, 4.0, size),
        "labels": lambda: generator.integers(0, 2, (size, 3)),
        "forecast": lambda: None,
    }[target]()
    names = [f"c{channel}" for channel in range(CHANNELS)]
    return RawSeries(Path("data.npz"), rows_like(lengths, seed, gaps), lengths, targets, names, **more)


def task_of(target: str, raw: RawSeries | None = None, **more: Any) -> Arrays:
    more = {"length": 4 if target == "forecast" else LONGEST, "horizon": 2, "seed": 3, **more}
    return Arrays(files={"train": raw_of(target) if raw is None else raw}, target=target, **more)  # type: ignore[arg-type]


def series_of(raw: RawSeries, number: int) -> NDArray:
    start = int(raw.lengths[:number].sum())
    return raw.inputs[start : start + raw.lengths[number]]


@pytest.mark.parametrize("target", ["class", "labels", "value", "step_class", "step_value"])
@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_a_batch_is_what_plain_loops_give(target: str, gaps: float) -> None:
    raw = raw_of(target, gaps=gaps)
    assert raw.targets is not None
    task = task_of(target, raw, missing="fill" if gaps else "refuse")
    part = task._examples["train"]
    seen = np.concatenate([series_of(raw, number) for number in part.series]).astype(np.float64)
    mean, std = np.nanmean(seen, 0), np.nanstd(seen, 0)
    batch = task.train_batch(2, 0, 8, slice(0, 8))
    assert batch.lengths is not None
    assert batch.examples is not None
    bounds = np.cumsum(raw.lengths)
    known = sorted(LABELS.tolist())
    for b in range(8):
        number = int(part.series[batch.examples[b]])
        values, length = series_of(raw, number), int(raw.lengths[number])
        assert batch.lengths[b] == length
        for channel in range(CHANNELS):
            last = mean[channel]
            for t in range(length):
                value = values[t, channel]
                last = last if np.isnan(value) else value
                expected = (last - mean[channel]) / std[channel]
                assert batch.inputs[t, b, channel] == pytest.approx(expected, abs=2e-5)
                if gaps:
                    assert batch.inputs[t, b, CHANNELS + channel] == float(not np.isnan(value))
        first = int(bounds[number]) - length
        own = raw.targets[first : first + length] if target.startswith("step") else raw.targets[number]
        found = batch.targets[:length, b] if target.startswith("step") else batch.targets[b]
        if target.endswith("class"):
            assert [known[each] for each in found.reshape(-1)] == np.atleast_1d(own).tolist()
        elif target == "labels":
            assert found.tolist() == own.tolist()
        else:
            constants = task.input_description()
            restored = found.numpy() * constants["target_std"] + constants["target_mean"]
            assert np.allclose(restored.reshape(-1), own.reshape(-1), atol=1e-4)
    assert task.inputs == CHANNELS * (2 if gaps else 1)


def test_a_forecast_is_what_follows_and_the_last_steps_are_held_out() -> None:
    lengths = np.array([30, 5, 22])
    raw = raw_of("forecast", lengths)
    task = task_of("forecast", raw, channels=["c1"], shares={"validation": 0.2, "test": 0.2}, standardize=False)
    assert (task.outputs, task.inputs) == (2, CHANNELS)
    ends = {"train": [18, 3, 14], "validation": [24, 4, 18], "test": [30, 5, 22]}
    begins = {"train": [0, 0, 0], "validation": ends["train"], "test": ends["validation"]}
    found: dict[str, set[tuple[int, ...]]] = {}
    for split in ("train", "validation", "test"):
        batches = (
            [task.train_batch(0, cursor, 1, slice(0, 1)) for cursor in range(task.train_examples)]
            if split == "train"
            else list(task.evaluation_batches(split, 0, 1))  # type: ignore[arg-type]
        )
        made = set()
        for batch in batches:
            sizes = [len(batch.inputs)] * batch.size if batch.lengths is None else batch.lengths.tolist()
            for b, size in enumerate(sizes):
                x, y = batch.inputs[:size, b].numpy(), batch.targets[:size, b].numpy()
                number, start = next(
                    (n, s)
                    for n in range(3)
                    for s in range(lengths[n] - size)
                    if np.array_equal(series_of(raw, n)[s : s + size], x)
                )
                for t in range(size):
                    after = series_of(raw, number)[start + t + 1 : start + t + 3, 1]
                    assert np.array_equal(after, y[t])
                made.add((number, start, size))
        found[split] = made
        wanted = set()
        for n in range(3):
            for end in range(1, ends[split][n] - 2 + 1):  # steps read; two more are the forecast
                start = max(0, end - 4)
                full = end >= min(4, ends[split][n] - 2)
                if full if split == "train" else end >= begins[split][n]:
                    wanted.add((n, start, end - start))
        assert made == wanted


def test_a_forecast_fits_its_constants_to_the_training_part() -> None:
    raw = raw_of("forecast", np.array([40, 30]))
    changed = RawSeries(raw.path, raw.inputs.copy(), raw.lengths, None, raw.features)
    changed.inputs[34:40] *= 100  # of the first series, the test part
    one, other = (task_of("forecast", each) for each in (raw, changed))
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())
    changed.inputs[0] += 1
    assert not torch.equal(task_of("forecast", changed).state_dict()["mean"], one.state_dict()["mean"])


@pytest.mark.parametrize("target", ["class", "step_class"])
def test_every_format_gives_the_same_batches(target: str, tmp_path: Path) -> None:
    raw = raw_of(target)
    assert raw.targets is not None
    numbers = np.unique(raw.targets, return_inverse=True)[1].astype(np.int64)
    flat = {"inputs": raw.inputs, "lengths": raw.lengths, "targets": numbers}
    padded = {"inputs": np.full((len(raw.lengths), LONGEST, CHANNELS), np.nan, np.float32), "lengths": raw.lengths}
    steps = np.full((len(raw.lengths), LONGEST), -7)
    first = 0
    for number, length in enumerate(raw.lengths):
        padded["inputs"][number, :length] = series_of(raw, number)
        steps[number, :length] = numbers[first : first + length] if target == "step_class" else 0
        first += length
    padded["targets"] = steps if target == "step_class" else numbers
    np.savez(tmp_path / "flat.npz", **flat)
    np.savez_compressed(tmp_path / "padded.npz", **padded)
    save_file({name: np.ascontiguousarray(value) for name, value in padded.items()}, tmp_path / "a.safetensors")
    for name, arrays in {"flat": flat, "padded": padded}.items():
        (tmp_path / name).mkdir()
        for key, value in arrays.items():
            np.save(tmp_path / name / f"{key}.npy", value)
    expected = [task_of(target, raw).train_batch(1, 8, 8, slice(2, 5)) for _ in range(2)]
    for place in ("flat.npz", "padded.npz", "a.safetensors", "flat", "padded"):
        read = read_arrays(tmp_path / place, targets=True, per_step=target == "step_class")
        assert isinstance(read.inputs, np.memmap) == (tmp_path / place).is_dir()
        task = task_of(target, read)
        pack(task, 1)
        pickled = pickle.dumps(task)  # as a data worker process gets it
        assert not (tmp_path / place).is_dir() or read.inputs.tobytes() not in pickled
        batch = task.train_batch(1, 8, 8, slice(2, 5))
        elsewhere = pickle.loads(pickled).train_batch(1, 8, 8, slice(2, 5))
        for found in (batch, elsewhere, expected[1]):
            assert torch.equal(found.inputs, expected[0].inputs), place
            assert torch.equal(found.targets, expected[0].targets), place


@pytest.mark.parametrize("shards", ["shuffled", "fixed", "by_label"])
@pytest.mark.parametrize("bucketing", [False, True])
def test_workers_see_the_global_batch_in_slices(shards: Any, bucketing: bool) -> None:
    raw = raw_of("class", lengths_of(400))
    tasks = [task_of("class", raw, bucketing=bucketing) for _ in range(2)]
    for rank, task in enumerate(tasks):
        task.set_partition(shards, rank, 2)
    examples = tasks[0].train_examples
    seen = []
    for cursor in range(0, examples - examples % 8, 8):
        halves = [task.train_batch(1, cursor, 8, slice(4 * rank, 4 * rank + 4)) for rank, task in enumerate(tasks)]
        both = torch.cat([half.lengths for half in halves])  # type: ignore[misc]
        for half in halves:
            assert torch.equal(half.global_lengths, both)  # type: ignore[arg-type]
            assert len(half.inputs) == both.max()
            seen += half.examples.tolist()  # type: ignore[union-attr]
        if shards == "shuffled":
            whole = tasks[0].train_batch(1, cursor, 8, slice(0, 8))
            assert torch.equal(torch.cat([half.inputs for half in halves], 1), whole.inputs)
    assert len(seen) == len(set(seen)) == examples - examples % 8


def test_bucketing_puts_similar_lengths_together_in_another_order_every_epoch() -> None:
    raw = raw_of("class", np.random.default_rng(0).integers(1, 200, 1000))

    def padding(bucketing: bool, epoch: int) -> float:
        task = task_of("class", raw, bucketing=bucketing, length=200)
        batches = [task.train_batch(epoch, at, 8, slice(0, 8)) for at in range(0, task.train_examples - 8, 8)]
        steps = sum(batch.inputs.shape[0] * batch.size for batch in batches)
        return 1 - sum(int(batch.lengths.sum()) for batch in batches) / steps  # type: ignore[union-attr]

    assert padding(True, 0) < 0.15 < 0.35 < padding(False, 0)
    task = task_of("class", raw, length=200)
    first, second = (task._order(epoch, 8) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, task_of("class", raw, length=200)._order(0, 8))
    assert task.train_examples > POOL * 8


def test_splits_by_share_file_and_column() -> None:
    lengths = lengths_of(200)
    raw = raw_of("class", lengths)
    task = task_of("class", raw, shares={"validation": 0.25, "test": 0.1})
    parts = {split: set(part.series.tolist()) for split, part in task._examples.items()}
    assert [len(parts[split]) for split in ("train", "validation", "test")] == [129, 50, 21]
    assert set.union(*parts.values()) == set(range(200))
    for label in range(3):  # in proportion
        assert sum(each % 3 == label for each in parts["test"]) == 7
    again = task_of("class", raw, shares={"validation": 0.25, "test": 0.1}, seed=77)
    other = task_of("class", raw, shares={"validation": 0.25, "test": 0.1}, split_seed=1)
    assert set(again._examples["test"].series) == parts["test"] != set(other._examples["test"].series)

    named = np.array(["train", "test", "validation", "train", "train"] * 40)
    task = task_of("class", raw_of("class", lengths, split=named))
    assert {split: list(part.series) for split, part in task._examples.items()} == {
        split: np.nonzero(named == split)[0].tolist() for split in ("train", "validation", "test")
    }

    files = {"train": raw, "test": raw_of("class", lengths_of(30), seed=9)}
    task = Arrays(files=files, target="class", length=LONGEST, shares={"validation": 0.5, "test": 0.5})
    assert [len(task._examples[split]) for split in ("train", "validation", "test")] == [99, 101, 30]
    (batch,) = task.evaluation_batches("test", 0, 1)
    assert sorted(batch.lengths.tolist()) == sorted(lengths_of(30))  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["class", "labels", "value", "step_class", "step_value", "forecast"])
def test_the_metric_is_that_of_plain_loops_over_all_workers(target: str) -> None:
    shares = {"validation": 0.3, "test": 0.3}
    raw = raw_of(target, np.full(40, LONGEST)) if target == "value" else None
    metric = "accuracy" if target.endswith("class") or target == "labels" else "mae"
    task = task_of(target, raw, shares=shares, metrics=[metric])
    assert task.metrics is not None
    (found,) = task.metrics.make().values()
    generator = torch.Generator().manual_seed(0)
    errors = []
    description = task.input_description()
    for rank in range(3):
        for batch in task.evaluation_batches("test", rank, 3):
            output = torch.randn(len(batch.inputs), batch.size, task.outputs, generator=generator)
            found.update(*task.predictions(output, batch))
            for b in range(batch.size):
                length = LONGEST if batch.lengths is None else int(batch.lengths[b])
                steps = range(length) if target.startswith("step") else [length - 1]
                for t in steps:
                    right = batch.targets[t, b] if batch.per_step_targets else batch.targets[b]
                    if target.endswith("class"):
                        errors.append(float(output[t, b].argmax() == right))
                    elif target == "labels":
                        errors.append(float(((output[t, b] > 0).float() == right).all()))
                    else:
                        std = torch.tensor(description["target_std"])
                        errors += ((output[t, b] - right) * std).abs().tolist()
    assert len(errors) > 0
    assert float(found.compute()) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_mase_is_in_units_of_the_naive_forecast_of_the_training_part() -> None:
    raw = raw_of("forecast", np.array([40, 30]))
    task = task_of("forecast", raw)
    assert (task.metric, task.higher_is_better) == ("mase", False)
    steps = np.concatenate([np.abs(np.diff(series_of(raw, number)[: [28, 22][number]], axis=0)) for number in (0, 1)])
    assert task.metrics is not None
    assert task.metrics.scale is not None
    assert task.metrics.scale.numpy() == pytest.approx(steps.mean(0), rel=1e-5)


def test_a_checkpoint_of_other_training_examples_is_refused() -> None:
    raw = raw_of("class")
    task = task_of("class", raw)
    assert task.validate_state(task_of("class", raw).state_dict()) is None
    for changed in ({"inputs": raw.inputs + 1}, {"targets": raw.targets[::-1]}, {"lengths": raw.lengths[::-1]}):  # type: ignore[index]
        values = {"inputs": raw.inputs, "lengths": raw.lengths, "targets": raw.targets, **changed}
        other = RawSeries(raw.path, features=raw.features, **values)
        with pytest.raises(DataError) as caught:
            task.validate_state(task_of("class", other).state_dict())
        said = "the run was trained on other examples than those that data.npz has now: put that file back, or train"
        assert str(caught.value) == f"{said} a new run"
    held_out = raw.inputs.copy()
    for number in task._examples["test"].series:
        start = int(raw.lengths[:number].sum())
        held_out[start] += 1
    other = RawSeries(raw.path, held_out, raw.lengths, raw.targets, raw.features)
    assert task.validate_state(task_of("class", other).state_dict()) is None
    task.load_state_dict({**task.state_dict(), "mean": torch.tensor([100.0, 0.0])})
    assert task.train_batch(0, 0, 4, slice(0, 4)).inputs[0, :, 0].max() < -10


def test_balanced_weights_give_every_class_the_same_part_of_the_loss() -> None:
    raw = raw_of("class", np.full(60, LONGEST))
    assert raw.targets is not None
    raw.targets[6:] = "no"
    task = task_of("class", raw, class_weights="balanced")
    part = task._examples["train"]
    labels = np.unique(raw.targets, return_inverse=True)[1][part.series]
    weights = task.loss.class_weights  # type: ignore[attr-defined]
    for label in range(3):
        assert weights[label] * (labels == label).sum() == pytest.approx(len(labels) / 3)


def test_statistics_in_blocks_are_those_of_all_rows() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal([1e6, 0.0], [1.0, 1e-3], (5000, 2))
    rows[generator.random(rows.shape) < 0.2] = np.nan
    found = Statistics(2)
    for start in range(0, 5000, 700):
        found.add(rows[start : start + 700])
    fitted = found.scaling()
    assert np.allclose(fitted.mean, np.nanmean(rows, 0), rtol=1e-6, atol=1e-6)
    assert np.allclose(fitted.std, np.nanstd(rows, 0), rtol=1e-6)


def test_blocks_are_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of("class")
    whole = next(blocks(raw, raw.first_rows(), raw.lengths))
    assert len(whole[0]) == len(raw.inputs) < ROWS
    monkeypatch.setattr(scaling, "ROWS", 7)  # less than the longest series
    parts = list(blocks(raw, raw.first_rows(), raw.lengths))
    assert max(len(values) for values, _, _ in parts) <= 7 < LONGEST
    for number, expected in enumerate(whole):
        assert np.array_equal(np.concatenate([part[number] for part in parts]), expected)


def test_small_steps_of_large_numbers_are_kept() -> None:
    """Seconds since 1970 fill float32's seven digits."""
    lengths = np.full(40, LONGEST)
    seconds = 1.7e9 + np.arange(lengths.sum(), dtype=np.float64)
    raw = RawSeries(Path("data.npz"), seconds[:, None], lengths, 1.7e9 + np.arange(40.0), ["t"])
    task = task_of("value", raw)
    batch = task.train_batch(0, 0, 8, slice(0, 8))
    assert batch.examples is not None
    series = task._examples["train"].series
    used = np.concatenate([seconds[number * LONGEST : (number + 1) * LONGEST] for number in series])
    expected = seconds.reshape(40, LONGEST)[series[batch.examples]].T
    assert np.allclose(batch.inputs[..., 0], (expected - used.mean()) / used.std(), atol=1e-5)
    restored = batch.targets.double().numpy() * task._scale.std + task._scale.mean
    assert np.allclose(restored[:, 0], 1.7e9 + series[batch.examples], atol=1e-3)


def test_fortran_order_is_read_as_written(tmp_path: Path) -> None:
    lengths = np.full(40, 5)
    values = np.random.default_rng(0).normal(size=(40, 5, 3))
    for name, inputs in (("rows", values.reshape(200, 3)), ("padded", values)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "inputs.npy", np.asfortranarray(inputs))
        np.save(tmp_path / name / "lengths.npy", lengths)
        np.save(tmp_path / name / "targets.npy", np.arange(40) % 2)
        raw = read_arrays(tmp_path / name, targets=True, per_step=False)
        assert np.array_equal(raw.inputs, values.reshape(200, 3))
        task = task_of("class", raw)
        elsewhere = pickle.loads(pickle.dumps(task))
        one, other = (each.train_batch(0, 0, 4, slice(0, 4)).inputs for each in (task, elsewhere))
        assert torch.equal(one, other)


def test_padding_of_classes_may_be_anything(tmp_path: Path) -> None:
    classes = np.tile([0.0, 1, 0, 1, np.nan], (40, 1))
    path = tmp_path / "p.npz"
    np.savez(path, inputs=np.random.default_rng(0).normal(size=(40, 5, 1)), targets=classes, lengths=np.full(40, 4))
    task = task_of("step_class", read_arrays(path, targets=True, per_step=True), length=5)
    assert task.classes == ["0", "1"]


def test_a_missing_value_is_never_filled_from_another_series() -> None:
    nan = np.nan
    values = np.array([[1.0], [nan], [nan], [2.0], [nan]])
    found, seen = filled(values, np.array([0, 1, 0, 1, 2]), np.array([9.0]))
    assert found.ravel().tolist() == [1.0, 1.0, 9.0, 2.0, 2.0]
    assert seen.ravel().tolist() == [1, 0, 0, 1, 0]


def test_a_constant_channel_is_told_and_stays_finite(caplog: pytest.LogCaptureFixture) -> None:
    raw = raw_of("class")
    raw.inputs[:, 1] = 4.0
    batch = task_of("class", raw).train_batch(0, 0, 4, slice(0, 4))
    assert "data.npz: constant at all training steps, so that nothing is learned from it: c1" in caplog.text
    assert bool((batch.inputs[..., 1] == 0).all())


def _savez(**arrays: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        path = folder / "x.npz"
        np.savez(path, **arrays)
        return path

    return save


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return save


GOOD = {"inputs": np.ones((3, 4, 2), np.float32), "targets": np.arange(3)}
UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda folder: folder / "none.npz", "there is no file"),
    "another type": (_bytes("x.mat", b""), "x.mat is a file of type .mat: expected a .npz or .safetensors file"),
    "one array": (_bytes("x.npy", b""), "x.npy is one array: type the folder that it is in"),
    "no zip": (_bytes("x.npz", b"nonsense"), "x.npz cannot be read"),
    "nothing": (_bytes("x.npz", b""), "x.npz cannot be read"),
    "no safetensors": (_bytes("x.safetensors", b"nonsense"), "x.safetensors cannot be read"),
    "an empty folder": (lambda folder: folder, "has no inputs.npy"),
    "objects": (
        _savez(inputs=np.array([[1, 2], [3]], dtype=object)),
        "(array inputs) cannot be read: it is an array of Python objects (dtype object)",
    ),
    "no inputs": (_savez(x=np.ones(3)), "x.npz has no array inputs: expected inputs, targets; found none"),
    "no targets": (_savez(inputs=np.ones((3, 4))), "x.npz has no array targets: expected one target per series"),
    "text": (_savez(**{**GOOD, "inputs": np.array(["a"])}), "inputs holds <U1: expected numbers"),
    "no series": (_savez(**{**GOOD, "inputs": np.ones((0, 4))}), "inputs has the shape (0, 4)"),
    "one axis": (_savez(**{**GOOD, "inputs": np.ones(3)}), "inputs has the shape (3,): expected (N, T, C)"),
    "an empty series": (_savez(**GOOD, lengths=np.array([1, 0, 2])), "series 1 has 0 steps: expected at least 1"),
    "a long series": (_savez(**GOOD, lengths=np.array([1, 5, 2])), "series 1 has 5 steps by lengths"),
    "more lengths": (_savez(**GOOD, lengths=np.ones(4, int)), "4 lengths for inputs of shape (3, 4, 2): expected 3"),
    "other rows": (
        _savez(inputs=np.ones((7, 2)), lengths=np.array([3, 3]), targets=np.arange(2)),
        "lengths sum to 6 over 2 series, and inputs has the shape (7, 2)",
    ),
    "float lengths": (_savez(**GOOD, lengths=np.ones(3)), "lengths is float64 of shape (3,): expected integers"),
    "fewer targets": (
        _savez(**{**GOOD, "targets": np.arange(2)}),
        "targets has the shape (2,): expected (3,) or (3, D), one per series",
    ),
    "a strange split": (_savez(**GOOD, split=np.array(["train", "dev", "test"])), "split has 'dev': expected train"),
    "a split of numbers": (_savez(**GOOD, split=np.arange(3)), "split has values of type int64"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    make, message = UNREADABLE[case]
    path = make(tmp_path)
    with pytest.raises(DataError) as error:
        read_arrays(path, targets=True, per_step=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_targets_per_step_have_the_steps_of_the_inputs(tmp_path: Path) -> None:
    path = _savez(inputs=np.ones((3, 4, 2)), targets=np.ones((3, 5)))(tmp_path)
    with pytest.raises(DataError, match=r"targets has the shape \(3, 5\): expected \(3, 4\) or \(3, 4, D\), one per"):
        read_arrays(path, targets=True, per_step=True)


def _changed(target: str, **changes: Any) -> RawSeries:
    raw = raw_of(target)
    values = {"inputs": raw.inputs, "lengths": raw.lengths, "targets": raw.targets, "features": raw.features}
    for name, change in changes.items():
        values[name] = change(values[name].copy())
    return RawSeries(raw.path, **values)


def _at(index: Any, value: Any) -> Callable[[NDArray], NDArray]:
    def change(array: NDArray) -> NDArray:
        array[index] = value
        return array

    return change


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a missing value": (
        lambda: task_of("class", _changed("class", inputs=_at((0, 1), np.nan))),
        "data.npz: series 0, step 0, channel c1 is missing (NaN): type task.missing=fill",
    ),
    "an infinite value": (
        lambda: task_of("class", _changed("class", inputs=_at((0, 1), np.inf)), missing="fill"),
        "data.npz: series 0, step 0, channel c1 is infinite",
    ),
    "too large": (
        lambda: task_of("class", _changed("class", inputs=lambda x: x.astype(np.float64) * 1e39)),
        "too large for float32",
    ),
    "a long series": (
        lambda: task_of("class", length=LONGEST - 1),
        f"has {LONGEST} steps, more than task.length={LONGEST - 1}: type task.length={LONGEST}",
    ),
    "fractions as classes": (
        lambda: task_of("class", _changed("value", targets=lambda y: y[:, 0])),
        "expected whole numbers or text, or task.target=value for numbers",
    ),
    "several classes": (lambda: task_of("class", raw_of("labels")), "expected one class, or task.target=labels"),
    "one class": (
        lambda: task_of("class", _changed("class", targets=lambda y: np.full_like(y, "no"))),
        "all training examples are of the class no: expected at least two",
    ),
    "text as numbers": (lambda: task_of("value", raw_of("class")), "targets are text: expected numbers with"),
    "labels that are none": (
        lambda: task_of("labels", _changed("labels", targets=_at((3, 1), 2))),
        "data.npz: series 3 has the target 2: expected 0 or 1",
    ),
    "a target that is missing": (
        lambda: task_of("value", _changed("value", targets=_at((3, 1), np.nan))),
        "data.npz: series 3 has the target nan: expected a finite number",
    ),
    "a step's target that is missing": (
        lambda: task_of("step_value", _changed("step_value", targets=_at(0, np.nan))),
        "data.npz: series 0, step 0 has the target nan: expected a finite number",
    ),
    "an unknown label": (
        lambda: Arrays(
            files={"train": raw_of("class"), "test": _changed("class", targets=_at(2, "mayb"))},
            target="class",
            length=LONGEST,
        ),
        "data.npz: series 2 has the class mayb, which no training example has: expected one of no, perhaps, yes",
    ),
    "a series in two files": (
        lambda: Arrays(
            files={
                "train": raw_of("class", names=[f"p{number}" for number in range(40)]),
                "test": raw_of("class", names=[f"p{number}" for number in range(40)]),
            },
            target="class",
            length=LONGEST,
        ),
        "series p0 is in data.npz and in data.npz: expected each in one split",
    ),
    "an infinite class": (
        lambda: task_of("class", _changed("value", targets=lambda y: np.where(np.arange(40) == 3, np.inf, 1.0))),
        "data.npz: series 3 has the class inf: expected whole numbers or text",
    ),
    "other channels": (
        lambda: Arrays(
            files={"train": raw_of("class"), "test": _changed("class", features=lambda names: names[::-1])},
            target="class",
            length=LONGEST,
        ),
        "data.npz has the channels c1, c0: expected those of data.npz, c0, c1",
    ),
    "no series left": (
        lambda: task_of("class", raw_of("class", np.array([3, 3, 4]))),
        "data.npz has no series left for validation: type larger task.validation_share (of its 3 series)",
    ),
    "no step to forecast": (
        lambda: task_of("forecast", raw_of("forecast", np.array([9, 8])), horizon=3),
        "data.npz has too few steps for validation: its longest series has 9 in all",
    ),
    "an unknown channel": (
        lambda: task_of("forecast", raw_of("forecast", np.array([90])), channels=["c7"]),
        "data.npz has no channel c7 to forecast: expected one of c0, c1",
    ),
    "a missing value to forecast": (
        lambda: task_of(
            "forecast", RawSeries(Path("data.npz"), np.full((90, 2), np.nan), np.array([90]), None, ["c0", "c1"]),
            missing="fill",
        ),
        "data.npz: series 0, step 0, channel c0 is missing (NaN), and it is to be forecast",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_data_that_cannot_be_learned(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(DataError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
