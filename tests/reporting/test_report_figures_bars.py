"""The report's heat map of the windows' losses, and its bars of memory."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from fptt_dist.reporting import History
from fptt_dist.reporting.plots.figures import Plot
from fptt_dist.reporting.plots.windows import COLUMNS
from tests.reporting import figures
from tests.reporting.figures import BATCH, made


def drawn(runs: list[History], name: str) -> Plot:
    return figures.drawn(runs, name.partition("_")[0])[name]


def meshes(picture: Plot) -> list[tuple[Axes, QuadMesh]]:
    colour_bar = picture.figure.axes[-1]
    every = [(axes, each) for axes in picture.figure.axes if axes is not colour_bar for each in axes.collections]
    return [(axes, each) for axes, each in every if isinstance(each, QuadMesh)]


def losses(run: History) -> np.ndarray:
    return np.array([record["window_losses"] for record in run.training]).T


def test_colours_are_the_records_losses() -> None:
    run = made(windows=4, records=20)
    ((axes, mesh),) = meshes(drawn([run], "windows_losses"))
    np.testing.assert_array_equal(np.asarray(mesh.get_array()), losses(run))
    edges = np.asarray(mesh.get_coordinates())
    np.testing.assert_array_equal(edges[0, :, 0], np.arange(21) * BATCH)
    np.testing.assert_array_equal(edges[:, 0, 1], np.arange(5) + 0.5)  # window 1 is the lowest row
    assert axes.get_title() == "fptt"


def test_colours_are_means_over_seeds_and_blocks() -> None:
    runs = [made(seed=seed, records=3 * COLUMNS - 1) for seed in range(2)]
    picture = drawn(runs, "windows_losses")
    ((_, mesh),) = meshes(picture)
    values = np.mean([losses(run) for run in runs], axis=0)
    expected = [part.mean(1) for part in np.split(values, range(3, values.shape[1], 3), axis=1)]
    np.testing.assert_allclose(np.asarray(mesh.get_array()), np.array(expected).T, rtol=1e-12)
    assert "up to 3 consecutive records" in picture.caption
    assert "the mean" in picture.caption


def test_one_scale_of_colours_and_a_panel_for_each_group_with_windows() -> None:
    runs = [made(), made(algorithm="tbptt", windows=5), made(algorithm="bptt", windows=1)]
    picture = drawn(runs, "windows_losses")
    found = meshes(picture)
    assert len(found) == 2
    assert {axes.get_title().split()[0] for axes, _ in found} == {"fptt", "tbptt"}
    values = np.concatenate([losses(run).ravel() for run in runs[:2]])
    for _, mesh in found:
        assert mesh.get_clim() == (values.min(), values.max())
    assert picture.figure.axes[-1].get_ylabel() == "window's loss"
    for axes, _ in found:
        assert axes.get_xlabel() == "training sequences"
    assert found[0][0].get_ylabel() == "window k"


def test_a_lost_loss_has_no_colour() -> None:
    run = made()
    run.training[2]["window_losses"][1] = math.nan
    ((_, mesh),) = meshes(drawn([run], "windows_losses"))
    mask = np.ma.getmaskarray(np.ma.asarray(mesh.get_array()))
    assert np.argwhere(mask).tolist() == [[1, 2]]


def test_records_with_fewer_windows_leave_the_others_empty() -> None:
    run = made(windows=3)
    del run.training[4]["window_losses"][2:]
    ((_, mesh),) = meshes(drawn([run], "windows_losses"))
    mask = np.ma.getmaskarray(np.ma.asarray(mesh.get_array()))
    assert np.argwhere(mask).tolist() == [[2, 4]]


def test_equal_losses_are_drawn() -> None:
    run = made(records=1)
    run.training[0]["window_losses"] = [0.5, 0.5, 0.5]
    picture = drawn([run], "windows_losses")
    picture.figure.draw_without_rendering()
    ((_, mesh),) = meshes(picture)
    assert np.asarray(mesh.get_array()).ravel().tolist() == [0.5] * 3


def test_far_apart_losses_have_a_logarithmic_scale() -> None:
    run = made()
    run.training[0]["window_losses"][0] = 100.0
    picture = drawn([run], "windows_losses")
    assert picture.figure.axes[-1].get_yscale() == "log"
    assert "logarithmic" in picture.figure.axes[-1].get_ylabel()


def test_a_heat_map_is_an_image_in_an_svg() -> None:
    file = io.BytesIO()
    drawn([made(windows=20, records=5000)], "windows_losses").figure.savefig(file, format="svg")
    assert b"<image" in file.getvalue()
    assert len(file.getvalue()) < 300_000


def test_memory_is_the_largest_of_each_run() -> None:
    runs = [made(seed=0), made(seed=1), made(algorithm="bptt", windows=1)]
    for run in runs:
        for record in run.training:
            record["memory_bytes"] = int(record["memory_bytes"] * 2**30)
    picture = drawn(runs, "speed_memory_cpu")
    (axes,) = picture.figure.axes
    peaks = [max(record["memory_bytes"] for record in run.training) / 2**30 for run in runs]
    assert [
        bar.get_window_extent().transformed(axes.transData.inverted()).width for bar in axes.patches
    ] == pytest.approx([(peaks[0] + peaks[1]) / 2, peaks[2]])
    (ends,) = [np.asarray(each.get_xdata()).tolist() for each in axes.lines]
    assert ends == [min(peaks[:2]), max(peaks[:2])]
    assert axes.get_xlabel() == "memory of the process (GiB)"
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == ["fptt", "bptt"]


def test_processes_and_gpus_do_not_share_an_axis(tmp_path: Path) -> None:
    automatic = made("auto", algorithm="tbptt", device="auto")
    (tmp_path / "versions.json").write_text(json.dumps({"processor": "x", "gpu": "a fast one"}))
    automatic = History(tmp_path, automatic.config, automatic.training, automatic.evaluations, None)
    runs = [made(), made(algorithm="bptt", windows=1, device="cuda"), automatic]
    labels = {
        kind: [text.get_text() for text in drawn(runs, f"speed_memory_{kind}").figure.axes[0].get_yticklabels()]
        for kind in ("cpu", "gpu")
    }
    assert {kind: [label.split()[0] for label in each] for kind, each in labels.items()} == {
        "cpu": ["fptt"],
        "gpu": ["bptt", "tbptt"],
    }
    assert "allocator" in drawn(runs, "speed_memory_gpu").caption


def test_different_machines_are_said() -> None:
    def on(processor: str, algorithm: str) -> History:
        run = made(algorithm=algorithm)
        versions = {"processor": processor, "gpu": "none"}
        return History(run.path, run.config, run.training, run.evaluations, {"workers": 1, "versions": versions})

    same = drawn([on("a", "fptt"), on("a", "tbptt")], "speed_throughput")
    other = drawn([on("a", "fptt"), on("b", "tbptt")], "speed_throughput")
    assert "different hardware" not in same.caption
    assert "different hardware" in other.caption
