"""Predictions for new data: what the evaluation measured, the same for every cut, and one message for each mistake."""

import csv
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

from fptt_dist.config import Config, ConfigError, apply_overrides
from fptt_dist.config import Train as TrainSection
from fptt_dist.tasks import DataError
from fptt_dist.training.predict.predict import predict_run
from fptt_dist.training.predict.series import predicted, read_series
from fptt_dist.training.predict.stream import streamed, streamed_rows
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import open_run
from tests.training.helpers import isolated
from tests.training.texts import tiny_text

LAYERS = ("lstm", "gru", "layer_norm_lstm", "indrnn", "lem", "mingru", "minlstm", "lru", "lif", "ltc", "trellis")


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


def table(file: Path, target: str, *, series: int = 24, missing: bool = False, seed: int = 0) -> Path:
    """Write series of 5 to 12 steps with two channels, far from 0, and a target of the kind."""
    random = np.random.default_rng(seed)
    lines = ["time,load,id,heat,what"]
    for name in range(series):
        steps = int(random.integers(5, 13))
        load, heat = random.normal(1000, 30, steps), random.normal(-5, 0.1, steps)
        each = {
            "class": [f"kind {name % 3}"] * steps,
            "value": [f"{load.mean():.3f}"] * steps,
            "labels": [str(name % 2)] * steps,
            "step_class": [str(int(value > 1000)) for value in load],
            "step_value": [f"{value / 7:.3f}" for value in load],
        }[target]
        for step in range(steps):
            gone = "" if missing and step == 2 else f"{load[step]:.3f}"
            lines.append(f"{step},{gone},s{name:02},{heat[step]:.4f},{each[step]}")
    file.write_text("\n".join(lines) + "\n")
    return file


def config(folder: Path, data: Path, target: str, **keys: Any) -> Config:
    task = {"name": "arrays", "train": str(data), "target": target, "length": 12}
    task |= {"series_column": "id", "target_columns": ["what"], "feature_columns": ["load", "heat"]}
    base = Config(train=TrainSection(max_batches=3, batch_size=4))
    common = {"model.hidden": 5, "fptt.windows": 3, "logging.tensorboard": False, "device": "cpu"}
    return apply_overrides(base, {"task": task, **common, "run.dir": str(folder), **keys})


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_numbers_are_those_of_the_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the data's own units: the metric computed from what is printed is that of the test set."""
    test = table(tmp_path / "test.csv", "value", seed=1)
    result = train(config(tmp_path / "run", table(tmp_path / "a.csv", "value"), "value", **{"task.test": str(test)}))
    predict_run(tmp_path / "run", str(test))
    found = {row["id"]: float(row["what"]) for row in rows_of(capsys.readouterr().out)}
    right = {row["id"]: float(row["what"]) for row in rows_of(test.read_text())}
    assert found.keys() == right.keys()
    squares = [(found[name] - right[name]) ** 2 for name in found]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(result.value, rel=1e-5)


def test_a_class_has_its_probability_and_steps_have_their_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in ("class", "step_class"):
        data = table(tmp_path / f"{target}.csv", target)
        keys = {"task.test": str(table(tmp_path / "test.csv", target, seed=1))}
        result = train(config(tmp_path / target, data, target, **keys))
        predict_run(tmp_path / target, keys["task.test"])
        found = rows_of(capsys.readouterr().out)
        steps = rows_of((tmp_path / "test.csv").read_text())
        right = steps if target == "step_class" else list({row["id"]: row for row in steps}.values())
        assert [row["id"] for row in found] == [row["id"] for row in right]
        if target == "step_class":
            assert [row["time"] for row in found] == [row["time"] for row in right]
        accuracy = np.mean([row["class"] == other["what"] for row, other in zip(found, right, strict=True)])
        assert accuracy == pytest.approx(result.value)
        shares = [{name: float(value) for name, value in row.items() if name.startswith("p_")} for row in found]
        assert all(sum(each.values()) == pytest.approx(1, abs=1e-6) for each in shares)
        assert all(
            f"p_{row['class']}" == max(each, key=lambda n: each[n]) for row, each in zip(found, shares, strict=True)
        )


def test_a_forecast_is_of_the_steps_after_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = np.arange(200)
    text = "".join(f"{5 + np.sin(step / 5):.5f},{100 * np.cos(step / 7):.4f}\n" for step in steps)
    (tmp_path / "a.csv").write_text("wind,sun\n" + text)
    task = {"name": "arrays", "train": str(tmp_path / "a.csv"), "target": "forecast", "length": 20, "horizon": 2}
    task |= {"series_column": None, "time_column": None, "target_columns": ["sun"]}
    base = Config(train=TrainSection(max_batches=200, batch_size=16))
    keys = {"task": task, "optimizer.lr": 1e-2, "model.hidden": 16, "logging.tensorboard": False, "device": "cpu"}
    train(apply_overrides(base, {**keys, "run.dir": str(tmp_path / "run")}))
    predict_run(tmp_path / "run", str(tmp_path / "a.csv"))
    [row] = rows_of(capsys.readouterr().out)
    assert list(row) == ["series", "sun+1", "sun+2"]
    for ahead in (1, 2):
        assert float(row[f"sun+{ahead}"]) == pytest.approx(100 * np.cos((199 + ahead) / 7), abs=25)


def test_every_cut_gives_the_same(subtests: pytest.Subtests, tmp_path: Path) -> None:
    """Batches of series of unequal lengths, with padding, and step after step, each series apart or interleaved."""
    for number, layer in enumerate(LAYERS):
        target, fills = ("class", "step_value")[number % 2], number % 3 == 0
        data = table(tmp_path / f"{layer}.csv", target, series=12, missing=fills)
        lines = data.read_text().splitlines(keepends=True)
        mixed = sorted(lines[1:], key=lambda line: int(line.split(",")[0]))  # all first steps, all second ones, …
        keys = {"model.layer": layer, "train.max_batches": 1} | ({"task.missing": "fill"} if fills else {})
        keys |= {} if layer == "trellis" else {"model.layers": 1 + number % 2}
        train(config(tmp_path / layer, data, target, **keys))
        run = open_run(tmp_path / layer)
        run.network.output_steps = "all"
        raw = read_series(run, data)
        for bound in (1e-5, 1e-12):
            whole, stepwise = list(predicted(run, raw)), list(streamed(run, raw))[1:]
            interleaved = sorted(list(streamed_rows(run, iter([lines[0], *mixed]), "mixed"))[1:], key=lambda r: r[:2])
            with subtests.test(layer=layer, bound=bound):
                last = stepwise if target == "step_value" else list({row[0]: row for row in stepwise}.values())
                assert_close(last, whole, bound)
                assert [row[:3] for row in interleaved] == [row[:3] for row in stepwise]
                assert_close(interleaved, stepwise, bound)
            run.network.double()


def assert_close(rows: list[list[Any]], others: list[list[Any]], bound: float) -> None:
    """Compare what was predicted: the numbers, of which ids, steps, times and classes are none."""
    found, expected = (np.array([[v for v in row if isinstance(v, float)] for row in each]) for each in (rows, others))
    assert found.size > 0
    assert found == pytest.approx(expected, rel=bound, abs=bound)


def test_a_stream_is_answered_row_by_row(tmp_path: Path) -> None:
    data = table(tmp_path / "a.csv", "class")
    train(config(tmp_path / "run", data, "class"))
    asked: list[str] = []

    def lines() -> Iterator[str]:
        for line in data.read_text().splitlines(keepends=True)[:20]:
            asked.append(line)
            yield line

    answers = streamed_rows(open_run(tmp_path / "run"), lines(), "standard input")
    assert next(answers)[:3] == ["id", "step", "time"]
    for number, answer in enumerate(answers, 2):
        assert len(asked) == number
        assert answer[0] == asked[-1].split(",")[2]


def test_long_series_and_many_give_what_short_batches_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are cut by their size in memory, windows by their length."""
    train(config(tmp_path / "run", table(tmp_path / "a.csv", "class"), "class"))
    run = open_run(tmp_path / "run")
    run.network.output_steps = "all"
    inputs = np.random.default_rng(0).normal(1000, 30, (7, 600, 2))
    np.savez(tmp_path / "long.npz", inputs=inputs, lengths=np.array([600, 1, 256, 257, 512, 3, 255]))
    raw = read_series(run, tmp_path / "long.npz")
    whole = list(predicted(run, raw))
    module = sys.modules["fptt_dist.training.predict.series"]
    monkeypatch.setattr(module, "PLACES", 1000)
    monkeypatch.setattr(module, "STEPS", 7)
    for row, other in zip(whole, predicted(run, raw), strict=True):
        assert row[2:] == pytest.approx(other[2:], rel=1e-5)
    network, stats = run.network, run.input
    x = torch.from_numpy((inputs[3, :257] - stats["mean"]) / stats["std"]).float()
    with torch.no_grad():
        expected = network(x.unsqueeze(1))[0][-1, 0].softmax(-1)
    assert whole[3][2:] == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_text_is_given_the_probability_of_each_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    awd = {"model.layer": "awd_lstm", "model.embedding": 6, "model.layers": 2, "model.num_experts": 2}
    for name, keys in {"lstm": {}, "awd_lstm": awd}.items():
        train(tiny_text(tmp_path / name, keys, batches=2))
        run = open_run(tmp_path / name)
        vocabulary = run.input["vocabulary"]
        words = [vocabulary[place] for place in (3, 1, 4, 1, 5)]
        text = tmp_path / "new.txt"
        text.write_text(f"{' '.join(words)}\n{words[0]} zebra\n")
        ids = [vocabulary.index(each) for each in (*words, "<eos>", words[0], "<unk>", "<eos>")]
        with torch.no_grad():
            output, _ = run.network(torch.tensor(ids).unsqueeze(1))
        log_p = output[:, 0].double().log_softmax(-1)
        expected = [log_p[step, following].item() for step, following in enumerate(ids[1:])]
        for stream in (False, True):
            predict_run(tmp_path / name, str(text), stream=stream)
            found = rows_of(capsys.readouterr().out)
            assert [row["token"] for row in found] == [*words, "<eos>", words[0], "zebra", "<eos>"]
            assert found[0]["probability"] == ""
            assert [float(row["probability"]) for row in found[1:]] == pytest.approx(np.exp(expected), rel=1e-4)
            perplexity = math.exp(-np.mean(expected))
            said = f"perplexity {perplexity:.5g} over 8 words; 1 of 9 tokens are read as <unk> ('zebra' 1×)"
            assert said in caplog.text
            caplog.clear()


def test_files_hold_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path / "a.csv", "class")
    train(config(tmp_path / "run", data, "class"))
    data.rename(tmp_path / "new.csv")  # the training data are not needed
    predict_run(tmp_path / "run", str(tmp_path / "new.csv"))
    printed = rows_of(capsys.readouterr().out)
    for suffix in (".csv", ".parquet", ".npz"):
        out = tmp_path / f"out{suffix}"
        predict_run(tmp_path / "run", str(tmp_path / "new.csv"), out=out)
        if suffix == ".csv":
            assert rows_of(out.read_text()) == printed
            continue
        columns = dict(np.load(out)) if suffix == ".npz" else pyarrow.parquet.read_table(out).to_pydict()
        assert list(columns) == list(printed[0])
        assert list(columns["class"]) == [row["class"] for row in printed]
        assert list(columns["p_kind 1"]) == pytest.approx([float(row["p_kind 1"]) for row in printed], rel=1e-6)
    assert not list(tmp_path.glob("*.tmp"))


def test_other_tasks_give_their_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.training.helpers import tiny

    train(tiny(tmp_path / "run", batches=2))
    inputs = np.random.default_rng(0).normal(size=(3, 12, 2)).astype(np.float32)
    np.save(tmp_path / "new.npy", inputs)
    predict_run(tmp_path / "run", str(tmp_path / "new.npy"))
    found = rows_of(capsys.readouterr().out)
    run = open_run(tmp_path / "run")
    with torch.no_grad():
        expected = run.network(torch.from_numpy(inputs).transpose(0, 1))[0][-1, :, 0]
    assert [float(row["output"]) for row in found] == pytest.approx(expected.tolist(), rel=1e-5)


def test_mistakes(subtests: pytest.Subtests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(tmp_path / "a.csv", "class")
    train(config(tmp_path / "run", data, "class"))
    lines = data.read_text().splitlines()
    bad = {
        "channel": [line.replace("heat", "Heat") for line in lines],
        "number": [lines[0], lines[1].replace("-", "x"), *lines[2:]],
        "missing": [lines[0], re_empty(lines[1]), *lines[2:]],
        "order": [lines[0], lines[2], lines[1]],
        "fields": [lines[0], lines[1] + ",1"],
        "empty": [],
    }
    for name, content in bad.items():
        (tmp_path / f"{name}.csv").write_text("".join(f"{line}\n" for line in content))
    np.save(tmp_path / "three.npy", np.zeros((2, 4, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    cases: list[tuple[str, dict[str, Any], str]] = [
        (
            "channel.csv",
            {},
            "has no column 'heat': the run was trained on 'load', 'heat', 'id', 'time', and the header",
        ),
        ("channel.csv", {"stream": True}, "has no column 'heat': the run was trained on"),
        ("number.csv", {}, "row 1, column 'heat': 'x5"),
        ("number.csv", {"stream": True}, "row 1, column 'heat': 'x"),
        ("missing.csv", {}, "step 0, channel load is missing (NaN): expected a number, as the run was trained without"),
        ("missing.csv", {"stream": True}, "row 1, column 'load': a missing value: expected a number, as the run"),
        ("order.csv", {"stream": True}, "row 2, column 'time': '0' does not come after 1.0: a stream's steps"),
        ("fields.csv", {"stream": True}, "row 1: 6 fields, and the header has 5"),
        ("empty.csv", {}, "is empty: expected a header"),
        ("empty.csv", {"stream": True}, "is empty: expected a header"),
        ("three.npy", {}, "inputs has 3 channels: expected the 2 that the run was trained on, load, heat"),
        ("objects.npy", {}, "it is an array of Python objects"),
        ("nowhere.csv", {}, "nowhere.csv is no file"),
        ("nowhere.csv", {"stream": True}, "there is no file"),
        ("a.csv", {"out": tmp_path / "x.xls"}, "type a file that ends with .csv, .parquet, .npz"),
        ("a.csv", {"out": tmp_path / "no" / "x.csv"}, "there is no folder"),
        ("-", {}, "- is standard input, which is read step by step: type --stream"),
    ]
    before = sorted(tmp_path.iterdir())
    for source, more, said in cases:
        with subtests.test(source=source, **more):
            out = more.get("out", tmp_path / "out.csv")
            with pytest.raises((ConfigError, DataError)) as caught:
                predict_run(
                    tmp_path / "run", source if source == "-" else str(tmp_path / source), **{**more, "out": out}
                )
            assert said in str(caught.value)
            assert sorted(tmp_path.iterdir()) == before


def re_empty(line: str) -> str:
    """Return a line of the table without its load."""
    fields = line.split(",")
    return ",".join([fields[0], "", *fields[2:]])
