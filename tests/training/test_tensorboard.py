"""TensorBoard's own reader finds the scalars, and TensorBoard shows the layout and the runs' columns."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from fptt_dist.reporting import write_sweep
from fptt_dist.training.run import train
from tests.parallel.pool import Pool
from tests.parallel.runs import train as train_on_workers
from tests.program import Program
from tests.reporting.sweeps import make_sweep, run
from tests.training.helpers import records, result, resumed, tiny, train_until

BOARD = {"logging.tensorboard": True, "evaluate.every_batches": 2}


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_scalars_are_the_records(run: Path) -> None:
    found = scalars(run)
    lines = records(run, "train")
    tags = {
        "Loss/train": "loss",
        "Loss/gradient_norm": "gradient_norm",
        "FPTT/regularizer_over_gradient": "regularizer_ratio",
        "FPTT/center_distance": "center_distance",
        "FPTT/dual_norm": "dual_norm",
        "FPTT/alpha": "alpha",
        "FPTT/lr": "lr",
        "Speed/sequences_per_second": "sequences_per_second",
        "Speed/data_wait": "data_wait",
        "Speed/memory_bytes": "memory_bytes",
    }
    for tag, field in tags.items():
        assert [step for step, _ in found[tag]] == [line["batch"] for line in lines], tag
        assert [value for _, value in found[tag]] == pytest.approx([line[field] for line in lines], rel=1e-6), tag
    for k in range(3):
        values = [value for _, value in found[f"Windows/loss_{k + 1:03d}"]]
        assert values == pytest.approx([line["window_losses"][k] for line in lines], rel=1e-6)
    for split in ("validation", "test"):
        evaluations = [line for line in records(run, "evaluation") if line["split"] == split]
        steps, values = zip(*found[f"Loss/{split}_mse"], strict=True)
        assert list(steps) == [line["batch"] for line in evaluations]
        assert list(values) == pytest.approx([line["value"] for line in evaluations], rel=1e-6)


def test_scalars(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", BOARD, batches=6))
    assert_scalars_are_the_records(tmp_path / "run")


def hparams_of(events: Path, what: str) -> Any:
    from tensorboard.plugins.hparams import plugin_data_pb2

    board = EventAccumulator(str(events)).Reload()
    content = board.SummaryMetadata(f"_hparams_/{what}").plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)  # type: ignore[attr-defined]


def hyper_parameters(events: Path) -> dict[str, Any]:
    """What a folder of events says of its run."""
    values = hparams_of(events, "session_start_info").session_start_info.hparams
    return {key: values[key].string_value or values[key].number_value for key in values}


def test_hyper_parameters_result_and_layout(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    outcome = train(tiny(tmp_path / "run", {**BOARD, "fptt.windows": None}, batches=4))
    assert hyper_parameters(tmp_path / "run" / "tensorboard") == {
        "task.name": "adding",
        "algorithm": "fptt",
        "model.layer": "lstm",
        "model.hidden": 4,
        "fptt.alpha": 0.5,
        "fptt.beta": 0.5,
        "fptt.windows": 3,  # round(sqrt(12))
        "optimizer.name": "adam",
        "optimizer.lr": 0.01,
        "train.batch_size": 4,
        "workers": 1,
        "seed": 0,
    }
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (layout,) = events.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])  # type: ignore[attr-defined]
    assert [category.title for category in found.category] == ["Loss", "FPTT", "Speed"], "one worker, no consensus"
    found = scalars(tmp_path / "run")
    assert found["Result/test"] == [(4, pytest.approx(outcome.value, rel=1e-6))]
    assert found["Result/best_validation"][-1] == (outcome.best_batch, pytest.approx(outcome.validation, rel=1e-6))


@pytest.mark.parametrize(
    ("algorithm", "alpha", "windows"), [("fptt", 0.5, 3), ("tbptt", 0, 3), ("tbptt_accumulated", 0, 3), ("bptt", 0, 1)]
)
def test_hyper_parameters_are_those_that_took_effect(
    algorithm: str, alpha: float, windows: int, tmp_path: Path
) -> None:
    train(tiny(tmp_path / "run", {**BOARD, "algorithm": algorithm}, batches=1))
    values = hyper_parameters(tmp_path / "run" / "tensorboard")
    assert (values["fptt.alpha"], values["fptt.windows"]) == (alpha, windows)


def test_a_resumed_run_shows_each_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process's writers of one second are ordered by their number as text, in which 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = tmp_path / "run"
    parts = tiny(run, {**BOARD, "checkpoint.every_batches": 2}, batches=6)
    train_until(parts, 5)
    # A kill after batch 5: the run resumes from batch 4.
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    train(resumed(parts))
    assert_scalars_are_the_records(run)


def test_none_when_not_asked_for(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", batches=1))
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["batches"] == 1


def test_a_sweeps_columns_have_one_type_each(tmp_path: Path) -> None:
    """K and H that are null are the numbers behind it; a key that is no number anywhere is text everywhere."""
    from tensorboard.plugins.hparams import api_pb2

    keys = ["fptt.windows", "parallel.sync_every", "train.max_norm", "model.init"]
    sweep = make_sweep(tmp_path / "sweep", keys)
    both = {"parallel.strategy": "consensus"}
    for index, values in enumerate([(None, None, None, "chrono"), (4, 2, 0.5, "default")]):
        run(sweep, index, {**both, **dict(zip(keys, values, strict=True))}, (0.5, 0.25))
    write_sweep(sweep)
    found = [hyper_parameters(sweep / "tensorboard" / name) for name in ("000", "001")]
    assert found[0] == {"fptt.windows": 3, "parallel.sync_every": 3, "model.init": "chrono"}
    assert found[1] == {**dict(zip(keys, (4, 2, 0.5, "default"), strict=True))}
    for name in ("000", "001"):  # TensorBoard takes either
        infos = hparams_of(sweep / "tensorboard" / name, "experiment").experiment.hparam_infos
        kinds = {info.name: info.type == api_pb2.DATA_TYPE_FLOAT64 for info in infos}  # type: ignore[attr-defined]
        assert kinds == {key: key != "model.init" for key in keys}


class Board:
    """A TensorBoard that runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, route: str, **query: str) -> Any:
        with urlopen(f"{self.address}{route}?{urlencode(query)}", timeout=30) as answer:
            return json.load(answer)

    def post(self, route: str, body: dict[str, Any]) -> Any:
        request = Request(self.address + route, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def sessions(self, columns: list[dict[str, Any]]) -> dict[str, Any]:
        """The rows of the tab HParams by their runs, asked for as the page does."""
        asked = {
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
            "colParams": columns,
            "startIndex": 0,
            "sliceSize": 100,
        }
        groups = self.post("data/plugin/hparams/session_groups", asked)["sessionGroups"]
        return {group["name"].removesuffix("/tensorboard"): group for group in groups}


@contextmanager
def tensorboard(folder: Path, log: Path) -> Iterator[Board]:
    """TensorBoard over `folder`, on a port of its own choice; it has read everything."""
    words = ["-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
    program = Program(log, [*words, "--load_fast", "false"], os.environ)
    try:
        program.wait_until(lambda: "http://127.0.0.1:" in program.text())
        address = re.search(r"http://127\.0\.0\.1:\d+/", program.text())
        assert address
        board = Board(address[0])
        runs = {str(path.parent.relative_to(folder)) for path in folder.rglob("events.out.tfevents.*")}
        program.wait_until(lambda: set(board.get("data/plugin/scalars/tags")) == runs)
        yield board
    finally:
        program.kill()


ALONE: dict[str, dict[str, Any]] = {
    "half": {"fptt.windows": None},
    "tenth": {"fptt.alpha": 0.1, "fptt.windows": 4, "seed": 3},
    "tbptt": {"algorithm": "tbptt", "fptt.windows": 6},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "synced": {"fptt.alpha": 0.3, "parallel.strategy": "consensus"},
    "seldom": {"fptt.alpha": 0.3, "parallel.strategy": "consensus", "parallel.sync_every": 6},
    "gradient": {"fptt.alpha": 0.3, "parallel.strategy": "data_parallel"},
}
COLUMNS = {  # α, K, H
    "half": (0.5, 3, None),
    "tenth": (0.1, 4, None),
    "tbptt": (0.0, 6, None),
    "synced": (0.3, 3, 3),
    "seldom": (0.3, 3, 6),
    "gradient": (0.3, 3, 1),
    "unfinished": (0.7, 3, None),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in ALONE.items():
        train(tiny(folder / name, {**BOARD, **overrides}, batches=4))
    for name, overrides in TOGETHER.items():
        pool.run(train_on_workers, tiny(folder / name, {**BOARD, **overrides}, batches=4))
    # Stopped and gone on with, and stopped again: its layout and columns are there twice.
    unfinished = tiny(folder / "unfinished", {**BOARD, "fptt.alpha": 0.7}, batches=9)
    train_until(unfinished, 3)
    train_until(resumed(unfinished), 6)
    return folder


@pytest.fixture(scope="module")
def board(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with tensorboard(runs, tmp_path_factory.mktemp("log") / "tensorboard.txt") as running:
        yield running


def charts(layout: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    return {
        category["title"]: {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
        for category in layout["category"]
    }


@pytest.mark.slow
def test_custom_scalars_of_all_runs_are_one_layout(board: Board) -> None:
    layout = board.get("data/plugin/custom_scalars/layout")
    titles = [category["title"] for category in layout["category"]]
    assert sorted(titles) == ["Consensus", "FPTT", "Loss", "Speed"]
    found = charts(layout)
    assert sum(len(category["chart"]) for category in layout["category"]) == sum(map(len, found.values()))  # no twins
    lines = {
        title: {
            tag
            for expression in expressions
            for tag in board.get("data/plugin/custom_scalars/scalars", run="seldom/tensorboard", tag=expression)[
                "tag_to_events"
            ]
        }
        for category in found.values()
        for title, expressions in category.items()
    }
    assert all(lines.values()), lines
    windows = next(tags for title, tags in lines.items() if title.startswith("loss of each window"))
    assert windows == {f"Windows/loss_{k:03d}" for k in (1, 2, 3)}
    # Whatever a run records is in some chart, besides the result.
    recorded = {
        tag for tag in board.get("data/plugin/scalars/tags")["seldom/tensorboard"] if not tag.startswith("Result/")
    }
    assert set().union(*lines.values()) == recorded - {"Loss/test_mse"}


@pytest.mark.slow
def test_hparams_compare_alpha_k_and_h(board: Board, runs: Path) -> None:
    experiment = board.post("data/plugin/hparams/experiment", {})
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    for name in ("fptt.alpha", "fptt.windows", "parallel.sync_every", "optimizer.lr", "workers", "seed"):
        assert types[name] == "DATA_TYPE_FLOAT64"
    assert types["algorithm"] == "DATA_TYPE_STRING"
    assert list(types)[:5] == [
        "algorithm",
        "fptt.alpha",
        "fptt.windows",
        "parallel.sync_every",
        "workers",
    ]  # shown at first
    assert len(types) == 13
    words = {info["name"]: info.get("domainDiscrete", []) for info in experiment["hparamInfos"]}
    assert {"fptt", "tbptt", "tbptt_accumulated", "bptt_aux", "bptt"} == set(words["algorithm"])
    assert "lstm" in words["model.layer"]
    assert "adding" in words["task.name"]
    assert "adam" in words["optimizer.name"]
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == ["Result/best_validation", "Result/test"]
    groups = board.sessions([{"hparam": name, "includeInResult": True} for name in types])
    assert set(groups) == set(COLUMNS)
    for name, (alpha, windows, every) in COLUMNS.items():
        hparams = groups[name]["hparams"]
        assert (hparams["fptt.alpha"], hparams["fptt.windows"]) == (alpha, windows), name
        assert hparams.get("parallel.sync_every") == every, name
        assert hparams["workers"] == (2 if name in TOGETHER else 1), name
        metrics = {value["name"]["tag"]: value["value"] for value in groups[name]["metricValues"]}
        best = [line["value"] for line in records(runs / name, "evaluation") if line.get("best")]
        assert metrics["Result/best_validation"] == pytest.approx(best[-1], rel=1e-6)
        if name == "unfinished":
            assert "Result/test" not in metrics
        else:
            assert metrics["Result/test"] == pytest.approx(result(runs / name)["value"], rel=1e-6)
    statuses = {name: group["sessions"][0]["status"] for name, group in groups.items()}
    assert statuses.pop("unfinished") == "STATUS_UNKNOWN"
    assert set(statuses.values()) == {"STATUS_SUCCESS"}


@pytest.mark.slow
def test_hparams_filter_by_number(board: Board) -> None:
    """What a column of numbers and texts could not do."""
    few = board.sessions(
        [
            {
                "hparam": "parallel.sync_every",
                "filterInterval": {"minValue": 2, "maxValue": 9},
                "excludeMissingValues": True,
            }
        ]
    )
    assert set(few) == {"synced", "seldom"}
    weak = board.sessions([{"hparam": "fptt.alpha", "filterInterval": {"minValue": 0.05, "maxValue": 0.4}}])
    assert set(weak) == {"tenth", "synced", "seldom", "gradient"}
