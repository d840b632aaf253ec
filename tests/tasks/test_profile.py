"""A look at a file of one's own: the uses of its columns, and what can be learned from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.profile import TableColumns, profile

SERIES, STEPS = 8, 4


def table(path: Path, header: str, **columns: Any) -> Path:
    """A table of 8 series of 4 steps; a column's value is a function of the series and the step."""
    names = header.split(",")
    rows = [[str(columns[name](series, step)) for name in names] for series in range(SERIES) for step in range(STEPS)]
    path.write_text("".join(",".join(row) + "\n" for row in [names, *rows]))
    return path


@pytest.mark.parametrize(
    ("value", "target", "classes"),
    [
        (lambda series, step: "ab"[series % 2], "class", {"a": 4, "b": 4}),
        (lambda series, step: series % 4, "class", {"0": 2, "1": 2, "2": 2, "3": 2}),
        (lambda series, step: float(series > 1), "class", {"0": 2, "1": 6}),  # as pandas writes integers
        (lambda series, step: series, "value", {}),  # as many values as series
        (lambda series, step: series + 0.5, "value", {}),
        (lambda series, step: "ab"[step % 2], "step_class", {"a": 16, "b": 16}),
        (lambda series, step: step, "step_class", {"0": 8, "1": 8, "2": 8, "3": 8}),
        (lambda series, step: series / 2 + step, "step_value", {}),
    ],
)
def test_kind_of_a_target_column(tmp_path: Path, value: Any, target: str, classes: dict[str, int]) -> None:
    path = table(
        tmp_path / "t.csv", "series,time,x,y", series=lambda s, _: s, time=lambda _, t: t, x=lambda s, t: s * t, y=value
    )
    found = profile(path)
    assert (found.target, found.classes) == (target, classes)
    assert found.columns == TableColumns("series", "time", ["y"], ["x"], None, {})
    assert found.raw.targets is not None
    assert len(found.raw.targets) == (SERIES * STEPS if target.startswith("step") else SERIES)


def test_uses_of_columns_by_their_usual_names(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.csv",
        ",Unique_ID,when,temp,note,Split,nothing,Target",
        **{"": lambda s, t: s * STEPS + t, "Unique_ID": lambda s, _: f"m{s}", "when": lambda _, t: f"2024-01-0{t + 1}"},
        temp=lambda s, t: s + t if t else "",
        note=lambda *_: "fine",
        Split=lambda s, _: ("train", "train", "validation", "test")[s % 4],
        nothing=lambda *_: "",
        Target=lambda s, _: s % 2,
    )
    found = profile(path)
    left_out = {"": "number", "note": "text", "nothing": "empty"}
    assert found.columns == TableColumns("Unique_ID", "when", ["Target"], ["temp"], "Split", left_out)
    assert found.missing == {"temp": SERIES}
    assert found.raw.split is not None
    assert found.raw.split.tolist() == ["train", "train", "validation", "test"] * 2


def test_several_targets_and_none(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.csv",
        "machine,step,x,hot,loud,speed",
        machine=lambda s, _: s,
        step=lambda _, t: t,
        x=lambda s, t: s - t,
        hot=lambda s, _: s % 2,
        loud=lambda s, _: s // 4,
        speed=lambda s, _: s / 2,
    )
    labels = profile(path, series="machine", targets=["hot", "loud"])
    assert labels.target == "labels"
    assert labels.columns == TableColumns("machine", "step", ["hot", "loud"], ["x", "speed"], None, {})
    assert profile(path, series="machine", targets=["hot", "speed"]).target == "value"
    forecast = profile(path, series="machine")
    assert (forecast.target, forecast.raw.targets) == ("forecast", None)
    with pytest.raises(DataError) as caught:
        profile(path)
    assert str(caught.value) == (
        f"{path}, series 't': rows 1 and 5 have the same value in column 'step': expected one row per step and series. "
        "No column has a usual name of ids: add --series COLUMN if one holds them"
    )
    with pytest.raises(DataError, match=r"has no column 'hat', which --target names: did you mean 'hot'\? It has "):
        profile(path, targets=["hat"])


def test_arrays_of_every_format(tmp_path: Path) -> None:
    inputs = np.ones((SERIES, STEPS, 2), dtype=np.float32)
    inputs[3, 1:, 1] = np.nan
    lengths = np.full(SERIES, STEPS)
    lengths[3] = 2  # what follows is padding
    arrays = {"inputs": inputs, "lengths": lengths}
    per_series, per_step = np.arange(SERIES) % 2, np.tile(np.arange(STEPS) % 2, (SERIES, 1))
    per_step[3, 2:] = 7  # padding is no class
    np.savez(tmp_path / "a.npz", **arrays, targets=per_series)
    save_file({**arrays, "targets": per_step}, tmp_path / "b.safetensors")
    (tmp_path / "c").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "c" / f"{name}.npy", array)
    found = [profile(tmp_path / name) for name in ("a.npz", "b.safetensors", "c")]
    assert [each.target for each in found] == ["class", "step_class", "forecast"]
    assert [each.classes for each in found] == [{"0": 4, "1": 4}, {"0": 15, "1": 15}, {}]
    assert [each.missing for each in found] == [{"1": 1}] * 3
    assert {each.columns for each in found} == {None}
    with pytest.raises(DataError) as caught:
        profile(tmp_path / "a.npz", targets=["y"])
    said = "is no table: its target is the array targets; leave --series and --target out"
    assert str(caught.value) == f"{tmp_path}/a.npz {said}"


def test_targets_of_a_wrong_shape_are_no_forecast(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=np.ones((SERIES, STEPS, 1)), targets=np.zeros(SERIES + 1))
    with pytest.raises(DataError, match=r"targets has the shape \(9,\): expected \(8,\)"):
        profile(tmp_path / "a.npz")
