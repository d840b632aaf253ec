"""Predictions on their way out: CSV rows as they come, or a file that appears when it is whole."""

import csv
import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fptt_dist.config import ConfigError
from fptt_dist.files import write_error

FORMATS = (".csv", ".parquet", ".npz")


def check_output(path: Path) -> None:
    """Refuse a file whose format is not known, before anything is computed.

    Raises:
        ConfigError: its ending is none of those.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"--out {path}: type a file that ends with {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}")


def print_rows(header: Sequence[str], rows: Iterable[Sequence[Any]], stream: TextIO, *, at_once: bool = True) -> int:
    """Write a CSV table to a stream; return its number of rows.

    Args:
        header: names of the columns.
        rows: of the table.
        stream: that is written to.
        at_once: whether every row is there as soon as it is known.
    """
    writer, count = csv.writer(stream, lineterminator="\n"), 0
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{value:.7g}" if isinstance(value, float) else value for value in row])
        count += 1
        if at_once:
            stream.flush()
    stream.flush()
    return count


def write_rows(header: Sequence[str], rows: Iterable[Sequence[Any]], path: Path) -> int:
    """Write a table to a .csv, .parquet or .npz file (an array per column); return its number of rows.

    The file appears whole, or not at all.

    Raises:
        OSError: it could not be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        if path.suffix == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                count = print_rows(header, rows, file, at_once=False)
                os.fsync(file.fileno())
        else:
            count = _write_columns(header, list(rows), path.suffix, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return count


def _write_columns(header: Sequence[str], rows: list[Sequence[Any]], suffix: str, file: Path) -> int:
    columns = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), file)
        return len(rows)
    with zipfile.ZipFile(file, "w") as archive:  # numpy.savez has arguments of its own, whose names a column may have
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.array([math.nan if each is None else each for each in values]))
    return len(rows)
