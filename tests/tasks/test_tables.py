"""Series in CSV and Parquet tables: what is read, and the one message about each mistake in a file."""

import sys
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.tasks import DataError
from fptt_dist.tasks.data.series import RawSeries
from fptt_dist.tasks.data.tables import read_table

PLAIN = "series,time,x,y,label\na,0,1,10,up\na,1,2,20,up\nb,0,3,,down\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, **options: Any) -> RawSeries:
    given: dict[str, Any] = {"series": "series", "time": "time", "targets": ["label"], "features": None}
    return read_table(path, **(given | {"split": None, "per_step": False} | options))


def message(path: Path, content: str | bytes | None = None, **options: Any) -> str:
    if content is not None:
        write(path, content)
    with pytest.raises(DataError) as caught:
        read(path, **options)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    return said.removeprefix(str(path)).lstrip(":, ")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "table.csv", PLAIN)


def test_a_small_table(table: Path) -> None:
    found = read(table)
    assert found.path == table
    assert found.inputs.dtype == np.float64
    np.testing.assert_array_equal(found.inputs, [[1, 10], [2, 20], [3, np.nan]])
    assert (found.lengths.dtype, found.lengths.tolist()) == (np.int64, [2, 1])
    assert found.targets is not None
    assert (found.targets.dtype.kind, found.targets.tolist()) == ("U", ["up", "down"])
    assert (found.features, found.names, found.split) == (["x", "y"], ["a", "b"], None)


FIRST = date(2024, 2, 25)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["b", "a", "10", "9"]), st.integers(-9, 20), st.none() | st.floats(-9, 9, width=32)),
        min_size=1,
        unique_by=lambda row: row[:2],
    ),
    dates=st.booleans(),
    parquet=st.booleans(),
)
def test_rows_in_any_order_become_series_in_order_of_time(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, float | None]], dates: bool, parquet: bool
) -> None:
    names, times, values = zip(*rows, strict=True)
    when = [FIRST + timedelta(days=time) for time in times] if dates else times
    path = tmp_path_factory.mktemp("table") / ("t.parquet" if parquet else "t.csv")
    if parquet:
        columns = {"series": names, "time": when, "x": pyarrow.array(values, pyarrow.float64())}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        lines = zip(names, when, ("" if value is None else repr(value) for value in values), strict=True)
        write(path, "series,time,x\n" + "".join(f"{name},{time},{value}\n" for name, time, value in lines))
    expected: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for name, time, value in rows:
        expected[name].append((time, np.nan if value is None else value))
    found = read(path, targets=[], features=["x"])
    assert found.names == list(expected)
    assert found.lengths.tolist() == [len(steps) for steps in expected.values()]
    ordered = [value for steps in expected.values() for _, value in sorted(steps)]
    np.testing.assert_array_equal(found.inputs[:, 0], np.array(ordered, dtype=np.float64))


@pytest.mark.parametrize(
    ("column", "expected", "kind"),
    [
        ("007,3,7", ["007", "3", "7"], "U"),
        ("1,0,2", [1, 0, 2], "i"),
        ("true,false,true", [1, 0, 1], "i"),
        ("1.5,-2,0", [1.5, -2.0, 0.0], "f"),
        ("NA,no,yes", ["NA", "no", "yes"], "U"),  # of text only empty and nan are missing
    ],
)
def test_labels_and_values_of_each_kind(table: Path, column: str, expected: list[Any], kind: str) -> None:
    a, b, c = column.split(",")
    leading = "x" if a.startswith("0") else ""  # else all would be integers
    write(table, f"series,time,x,label\n1,0,0,{leading}{a}\n2,0,0,{b}\n3,0,0,{c}\n")
    found = read(table)
    assert found.targets is not None
    assert found.targets.dtype.kind == kind
    assert found.targets.tolist() == [f"{leading}{value}" if value == a else value for value in expected]


def test_ids_are_not_taken_for_numbers(table: Path) -> None:
    write(table, "series,time,x\n007,0,1\n7,0,2\n")
    assert read(table, targets=[]).names == ["007", "7"]


def test_targets_per_step_follow_their_steps(table: Path) -> None:
    write(table, "series,time,x,label,other\na,2,1,3,0.5\na,1,2,4,1.5\nb,1,3,5,2.5\n")
    found = read(table, targets=["label", "other"], per_step=True)
    assert found.features == ["x"]
    assert found.targets is not None
    np.testing.assert_array_equal(found.targets, [[4, 1.5], [3, 0.5], [5, 2.5]])
    np.testing.assert_array_equal(found.inputs, [[2], [1], [3]])


def test_a_file_without_ids_is_one_series_and_without_times_in_order(table: Path) -> None:
    write(table, "x,y\n3,1\n1,1\n2,1\n")
    found = read(table, series=None, time=None, targets=[], features=["x"])
    assert found.inputs.tolist() == [[3], [1], [2]]
    assert (found.lengths.tolist(), found.names) == ([3], ["table"])


def test_a_split_and_columns_named_in_any_order(table: Path) -> None:
    write(table, "\ufeffpart,y,when,x,who\ntest,1,0,2,b\ntrain,3,0,4,a\ntest,5,-1,6,b\n")
    found = read(table, series="who", time="when", targets=[], features=["x", "y"], split="part")
    assert found.inputs.tolist() == [[6, 5], [2, 1], [4, 3]]
    assert found.split is not None
    assert (found.split.tolist(), found.names) == (["test", "train"], ["b", "a"])


def test_parquet_keeps_ids_dates_categories_and_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    columns = {
        "series": pyarrow.array([3, 3, 1]),
        "time": ["2024-01-02T00:30:00+01:00", "2024-01-01T23:00:00+00:00", "2024-01-01T00:00:00Z"],
        "x": pyarrow.array([1, None, 3], pyarrow.int16()),
        "label": pyarrow.array(["u", "u", "d"]).dictionary_encode(),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    found = read(path)
    np.testing.assert_array_equal(found.inputs, [[np.nan], [1], [3]])
    assert found.targets is not None
    assert (found.targets.tolist(), found.names) == (["u", "d"], ["3", "1"])


def test_a_column_is_of_one_kind_far_below_too(table: Path) -> None:
    """The file is longer than what pyarrow reads at once."""
    rows = 300_000
    write(table, "series,time,x\n" + "".join(f"a,{row},1\n" for row in range(rows)) + f"b,{rows},1.5\n")
    assert read(table, targets=[]).inputs[-1] == 1.5
    write(table, table.read_text() + "b,0,2;5\n")
    said = message(table, targets=[])
    assert said.startswith(f"row {rows + 2}, column 'x': '2;5' is no number: expected numbers, and an empty field")


MISTAKES = {
    "no header": ("", "is empty: expected a header with the names of the columns, and one row per step"),
    "header only": ("series,time,x,label\n", "has a header and no row: expected one row per step"),
    "semicolons": (
        "series;time;x;label\na;0;1,5;u\n",
        "is separated by ';', expected commas (and points in numbers): its header is 'series;time;x;label'",
    ),
    "tabs": (
        "series\ttime\tx\tlabel\n",
        "is separated by '\\t', expected commas (and points in numbers): its header is 'series\\ttime\\tx\\tlabel'",
    ),
    "latin-1": (b"series,time,x,label\xe4\n", "is not UTF-8 (invalid continuation byte): save the table as UTF-8"),
    "two of a name": (
        "series,time,x,x,label\na,0,1,2,u\n",
        "has two columns of the name 'x': rename one of them",
    ),
    "no such column": (
        "series,times,x,label\na,0,1,u\n",
        "has no column 'time', which task.time_column names: did you mean 'times'? It has 'series', 'times', 'x', "
        "'label'",
    ),
    "no feature": (
        "series,time,label\na,0,u\n",
        "has no column left for the features: expected at least one with numbers",
    ),
    "pandas' index": (
        ",series,time,x,label\n0,a,0,1,u\n",
        "column 1 has no name; pandas writes its index so: write the table with index=False, or name the features in "
        "task.feature_columns",
    ),
    "a decimal comma in quotes": (
        'series,time,x,label\na,0,1,u\na,1,"1,5",u\n',
        "row 2, column 'x': '1,5' is no number (a decimal comma? write a point): expected numbers, and an empty field "
        "where one is missing",
    ),
    "a decimal comma": (
        "series,time,x,label\na,0,1,u\na,1,1,5,u\n",
        "row 2: 5 fields, and the header has 4: 'a,1,1,5,u'; write decimals with a point, and a text that has a comma "
        "in quotes",
    ),
    "text among the features": (
        "series,time,x,note,label\na,0,1,fine,u\n",
        "row 1, column 'note': 'fine' is no number: expected numbers, and an empty field where one is missing; or "
        "leave it out: task.feature_columns=[x]",
    ),
    "an empty column": (
        "series,time,x,y,label\na,0,1,,u\n",
        "column 'y': no row has a value: fill it in; or leave it out: task.feature_columns=[x]",
    ),
    "a date among the features": (
        "series,time,x,day,label\na,0,1,2024-01-01,u\n",
        "column 'day': has date32[day] values, expected numbers; or leave it out: task.feature_columns=[x]",
    ),
    "an infinite number": (
        "series,time,x,label\na,0,1,u\na,1,-inf,u\n",
        "row 2, column 'x': -inf: expected a finite number below 3.4e+38",
    ),
    "a number too large": (
        "series,time,x,label\na,0,1e39,u\n",
        "row 1, column 'x': 1e+39: expected a finite number below 3.4e+38",
    ),
    "no id": (
        "series,time,x,label\na,0,1,u\n,1,1,u\n",
        "row 2, column 'series': a missing value: expected one in every row",
    ),
    "no time": (
        "series,time,x,label\na,0,1,u\na,,1,u\n",
        "row 2, column 'time': a missing value: expected one in every row",
    ),
    "no label": (
        "series,time,x,label\na,0,1,u\nb,0,1,\n",
        "row 2, column 'label': a missing value: expected one in every row",
    ),
    "a label that pandas had as NaN": (
        "series,time,x,label\na,0,1,u\nb,0,1,nan\n",
        "row 2, column 'label': a missing value: expected one in every row",
    ),
    "no target number": (
        "series,time,x,label\na,0,1,1.5\nb,0,1,\n",
        "row 2, column 'label': a missing value: expected one in every row",
    ),
    "an infinite target": (
        "series,time,x,label\na,0,1,1.5\nb,0,1,inf\n",
        "row 2, column 'label': an infinite number: expected finite ones",
    ),
    "a time that is none": (
        "series,time,x,label\na,2024-01-01,1,u\na,01.02.2024,1,u\n",
        "row 2, column 'time': '01.02.2024' is no time: expected numbers, or ISO dates such as 2024-03-01 or "
        "2024-03-01 12:30:00",
    ),
    "time zones here and there": (
        "series,time,x,label\na,2024-01-01T00:00:00Z,1,u\na,2024-01-02T00:00:00,1,u\n",
        "column 'time': some times have a time zone and some have none: expected numbers, or ISO dates such as "
        "2024-03-01 or 2024-03-01 12:30:00",
    ),
    "a time twice": (
        "series,time,x,label\na,0,1,u\nb,1,1,u\na,0,1,u\n",
        "series 'a': rows 1 and 3 have the same value in column 'time': expected one row per step",
    ),
    "two labels of a series": (
        "series,time,x,label\nb,0,1,d\na,0,1,u\na,1,1,d\n",
        "series 'a': column 'label' is 'u' in row 2 and 'd' in row 3: expected one value per series; for a target per "
        "step type task.target=step_class or step_value",
    ),
}


def test_mistakes_in_a_file(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for name, (content, expected) in MISTAKES.items():
        with subtests.test(name):
            assert message(tmp_path / "table.csv", content) == expected


def test_mistakes_in_the_columns_asked_for(tmp_path: Path, subtests: pytest.Subtests) -> None:
    path = tmp_path / "table.csv"
    split = "series,time,x,part\na,0,1,train\nb,0,1,{}\na,1,1,test\n"
    cases: dict[str, tuple[str, dict[str, Any], str]] = {
        "a split that there is not": (
            split.format("dev"),
            {"targets": [], "split": "part"},
            "row 2, column 'part': 'dev', expected one of train, validation, test",
        ),
        "a series in two splits": (
            split.format("test"),
            {"targets": [], "split": "part"},
            "series 'a': column 'part' is 'train' in row 1 and 'test' in row 3: expected all of a series in one split",
        ),
        "the target as a feature": (
            PLAIN,
            {"features": ["x", "label"]},
            "column 'label' is named by task.target_columns and again by task.feature_columns: type each column once",
        ),
        "several series and no ids": (
            PLAIN,
            {"series": None, "targets": [], "features": ["x"]},
            "series 'table': rows 1 and 3 have the same value in column 'time': expected one row per step and series; "
            "type task.series_column=… if the file has several",
        ),
        "text and numbers": (
            PLAIN,
            {"targets": ["x", "label"]},
            "task.target_columns has text and numbers, expected only one of them: x (number), label (text)",
        ),
    }
    for name, (content, options, expected) in cases.items():
        with subtests.test(name):
            assert message(path, content, **options) == expected


def test_no_file_and_no_table(tmp_path: Path) -> None:
    assert message(tmp_path / "gone.csv") == "is no file: expected a table, .csv or .parquet"
    assert message(tmp_path / "table.xlsx", "x") == "a table is a file that ends with .csv or .parquet"
    assert message(tmp_path / "table.parquet", PLAIN).startswith("cannot be read as Parquet: ")
    path = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"series": [0.5], "time": [0], "x": [1.0]}), path)
    assert message(path, targets=[]) == "column 'series': has double values, expected text or integers"
    columns = {"series": ["a"], "time": [0], "x": [1.0], "label": ["u"], "__index_level_0__": [4]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert message(path).startswith("column '__index_level_0__' is there; pandas writes its index so:")


def test_without_pyarrow_the_message_says_what_installs_it(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert message(table) == "CSV and Parquet tables need pyarrow: pip install -e '.[tables]'"
