"""Columns of a CSV or Parquet file, each read as what it is used for: ids, times, numbers or labels."""

import csv
import re
from collections.abc import Callable, Collection
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fptt_dist.tasks.data.errors import DataError
from fptt_dist.tasks.data.idx import is_file

SUFFIXES = (".csv", ".parquet")
MISSING = "CSV and Parquet tables need pyarrow: pip install -e '.[tables]'"
SHOWN = 20  # columns of a message
NO_TEXT = ("", "nan", "NaN")  # a text column's missing values, as a spreadsheet and pandas write them
PANDAS_INDEX = "__index_level_0__"
Kind = Literal["number", "text", "time", "empty", "other"]


class Columns:
    """The columns of one file with a header, one row per step.

    Rows in messages count from 1 below the header; blank lines are no rows.

    Args:
        path: a .csv (UTF-8, separated by commas) or .parquet file.

    Attributes:
        path: the file.
        names: of its columns, in their order.

    Raises:
        DataError: no such file, no table, no columns, two of one name; or pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise DataError(f"{path}: {MISSING}") from error
        if not is_file(path):
            raise DataError(f"{path} is no file: expected a table, {' or '.join(SUFFIXES)}")
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: a table is a file that ends with {' or '.join(SUFFIXES)}")
        self.path = path
        self.names = _csv_header(path) if path.suffix == ".csv" else _parquet_header(path)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise DataError(f"{path} has two columns of the name {min(twice)!r}: rename one of them")
        self._table: Any = None

    def require(self, name: str, key: str) -> None:
        """Refuse a column that the file lacks.

        Args:
            name: the column.
            key: the configuration's key that names it.

        Raises:
            DataError: it is not there.
        """
        if name in self.names:
            return
        near = get_close_matches(name, self.names, n=1)
        held = ", ".join(map(repr, self.names[:SHOWN])) + (", …" if len(self.names) > SHOWN else "")
        hint = f"did you mean {near[0]!r}? It" if near else "it"
        raise DataError(f"{self.path} has no column {name!r}, which {key} names: {hint} has {held}")

    def load(self, names: Collection[str], *, text: Collection[str] = ()) -> None:
        """Read columns into memory.

        Args:
            names: of the columns.
            text: those of them that are read as text even if they look like numbers, so that 007 is not 7.

        Raises:
            DataError: the file cannot be read as a table, or has no row.
        """
        table = _read_csv(self.path, names, text) if self.path.suffix == ".csv" else _read_parquet(self.path, names)
        if not table.num_rows:
            raise DataError(f"{self.path} has a header and no row: expected one row per step")
        self._table = table

    def __len__(self) -> int:
        """Rows."""
        return self._table.num_rows

    def kind(self, name: str) -> Kind:
        """Return what a column that was read holds; "empty": no value at all."""
        import pyarrow

        types, kind = pyarrow.types, self._table[name].type
        if types.is_null(kind) or self._table[name].null_count == len(self):
            return "empty"
        if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind):
            return "number"
        if types.is_string(kind) or types.is_large_string(kind):
            return "text"
        return "time" if types.is_temporal(kind) else "other"

    def ids(self, name: str) -> tuple[NDArray[np.int64], list[str]]:
        """The places (R,) of a column's values among its distinct values, and those, in the order of their first row.

        Raises:
            DataError: a missing value, or a column that holds neither text nor integers.
        """
        import pyarrow

        column = self._table[name]
        if self.kind(name) != "text" and not pyarrow.types.is_integer(column.type):
            raise self._wrong(name, f"has {column.type} values, expected text or integers")
        encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
        values = [str(value) for value in encoded.dictionary.to_pylist()]
        codes = np.asarray(encoded.indices.fill_null(len(values))).astype(np.int64)
        absent = np.array([value in NO_TEXT for value in values] + [True])
        self._refuse_missing(name, absent[codes])
        return codes, values

    def times(self, name: str) -> NDArray:
        """(R,) numbers that are ordered as a column's numbers, dates or times are.

        Raises:
            DataError: a missing value, or text that is no ISO date.
        """
        import pyarrow

        column, kind = self._table[name], self.kind(name)
        self._refuse_missing(name)
        if kind == "text":  # Parquet keeps dates that are text as text
            self.ids(name)  # refuses an empty one
            for zone in (None, "UTC"):
                try:
                    return np.asarray(column.cast(pyarrow.timestamp("us", zone)).cast(pyarrow.int64()))
                except pyarrow.ArrowInvalid:
                    continue
            row, value = self._first_that_fails(name, datetime.fromisoformat)
            problem = "some times have a time zone and some have none" if row is None else f"{value!r} is no time"
            expected = "expected numbers, or ISO dates such as 2024-03-01 or 2024-03-01 12:30:00"
            raise self._wrong(name, f"{problem}: {expected}", row)
        if kind == "number":
            decimal = pyarrow.types.is_decimal(column.type)
            return np.asarray(column.cast(pyarrow.float64()) if decimal else column)
        if kind != "time":
            raise self._wrong(name, f"has {column.type} values, expected numbers or dates")
        width = pyarrow.int32() if column.type.bit_width == 32 else pyarrow.int64()
        return np.asarray(column.cast(width))

    def texts(self, name: str, order: NDArray) -> list[str]:
        """Return a column's values as text, in another order (R,) of the rows."""
        values = self._table[name].to_pylist()
        return [str(values[row]) for row in order.tolist()]

    def features(self, name: str, hint: str = "") -> NDArray[np.float64]:
        """(R,) numbers of a column, NaN where one is missing.

        Args:
            name: of the column.
            hint: what else can be done if it holds none, for the message.

        Raises:
            DataError: a value that is no number, infinite or too large for float32.
        """
        import pyarrow

        column, kind = self._table[name], self.kind(name)
        if kind == "text":
            row, value = self._first_that_fails(name, float)
            comma = " (a decimal comma? write a point)" if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", value) else ""
            problem = "has numbers as text" if row is None else f"{value!r} is no number{comma}"
            expected = "expected numbers, and an empty field where one is missing"
            raise self._wrong(name, f"{problem}: {expected}{hint}", row)
        if kind not in ("number", "empty"):
            raise self._wrong(name, f"has {column.type} values, expected numbers{hint}")
        values = np.asarray(column.cast(pyarrow.float64(), safe=False).fill_null(np.nan))
        large = np.abs(values) > np.finfo(np.float32).max
        if large.any():
            row = int(np.argmax(large))
            expected = f"expected a finite number below {np.finfo(np.float32).max:.2g}"
            raise self._wrong(name, f"{column[row].as_py()}: {expected}", row)
        return values

    def targets(self, name: str) -> NDArray:
        """(R,) a column's integers (of booleans: 0 and 1), float64 numbers or texts.

        Raises:
            DataError: a missing or infinite value, or values that are neither numbers nor text.
        """
        import pyarrow

        column, kind = self._table[name], self.kind(name)
        if kind == "text":
            codes, labels = self.ids(name)
            return np.array(labels)[codes]
        self._refuse_missing(name)
        if kind != "number":
            raise self._wrong(name, f"has {column.type} values, expected numbers or text")
        if pyarrow.types.is_integer(column.type) or pyarrow.types.is_boolean(column.type):
            return np.asarray(column.cast(pyarrow.int64(), safe=False))
        values = np.asarray(column.cast(pyarrow.float64()))
        if np.isinf(values).any():
            raise self._wrong(name, "an infinite number: expected finite ones", int(np.argmax(np.isinf(values))))
        return values

    def _refuse_missing(self, name: str, missing: NDArray[np.bool_] | None = None) -> None:
        if missing is None:
            missing = np.asarray(self._table[name].is_null(nan_is_null=True))
        if missing.any():
            raise self._wrong(name, "a missing value: expected one in every row", int(np.argmax(missing)))

    def _first_that_fails(self, name: str, read: Callable[[str], object]) -> tuple[int | None, str]:
        """Return the first row of a text column that `read` refuses, and its text; None and "" if it reads all."""
        for row, value in enumerate(self._table[name].to_pylist()):
            if value is None or value in NO_TEXT:
                continue
            try:
                read(value)
            except ValueError:
                return row, value
        return None, ""

    def _wrong(self, name: str, problem: str, row: int | None = None) -> DataError:
        place = f"column {name!r}" if row is None else f"row {row + 1}, column {name!r}"
        return DataError(f"{self.path}, {place}: {problem}")


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            names = next((row for row in csv.reader(stream) if row), None)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}): save the table as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if names is None:
        raise DataError(f"{path} is empty: expected a header with the names of the columns, and one row per step")
    line = ",".join(names)
    for separator in ";\t|":
        if line.count(separator) > line.count(","):
            raise DataError(
                f"{path} is separated by {separator!r}, expected commas (and points in numbers): its header is {line!r}"
            )
    return names


def _parquet_header(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).schema_arrow.names
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_first_line(error)}") from error


def _read_csv(path: Path, names: Collection[str], text: Collection[str]) -> Any:
    import pyarrow
    import pyarrow.csv

    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(names), column_types=dict.fromkeys(text, pyarrow.string())
    )
    try:
        return pyarrow.csv.read_csv(path, convert_options=convert)
    except (OSError, pyarrow.ArrowException, UnicodeError):
        pass
    try:  # again: only one thread knows the row
        return pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(use_threads=False), convert_options=convert)
    except (OSError, pyarrow.ArrowException, UnicodeError) as error:
        count = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", str(error))
        if count is None:
            raise DataError(f"{path} cannot be read as CSV: {_first_line(error)}") from error
        raise DataError(
            f"{path}, row {int(count[1]) - 1}: {count[3]} fields, and the header has {count[2]}: {count[4]!r}; write "
            "decimals with a point, and a text that has a comma in quotes"
        ) from error


def _read_parquet(path: Path, names: Collection[str]) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read(columns=list(names)).select(list(names))
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_first_line(error)}") from error
    for place, field in enumerate(table.schema):
        if pyarrow.types.is_dictionary(field.type):  # pandas' categories
            table = table.set_column(place, field.name, table[field.name].cast(field.type.value_type))
    return table


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
