"""JSON of records, in which a number may not be finite, and the small files that hold them.

JSON has no infinity and no NaN. Such a number is written as null, and `non_finite` says by its path what it was:

    {"value": null, "window_losses": [0.1, null], "non_finite": {"value": "inf", "window_losses/1": "nan"}}
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

LOG = logging.getLogger("fptt_dist")
REASON = "non_finite"


def dumps(record: Mapping[str, Any], indent: int | None = None) -> str:
    """Return a record as strict JSON; `loads` restores its numbers."""
    found: dict[str, str] = {}
    plain = _plain(record, "", found)
    return json.dumps({**plain, REASON: found} if found else plain, indent=indent, allow_nan=False)


def loads(text: str | bytes) -> dict[str, Any]:
    """Return the record that `dumps` gave.

    Raises:
        ValueError: it is not one JSON object in UTF-8.
    """
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    found = record.pop(REASON, {})
    for path, value in found.items() if isinstance(found, dict) else ():
        if value in ("inf", "-inf", "nan"):
            _restore(record, path.split("/"), float(value))
    return record


def read_record(file: Path) -> dict[str, Any] | None:
    """Return the content of a small JSON file; None where it is absent, or damaged, of which the log then says so."""
    try:
        return loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _warn(f"{file} cannot be read and counts as missing: {error}")
        return None


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file with one per line; a line that cannot be read is left out, which the log says.

    The last line is left out in silence where a run in progress is still writing it.

    Raises:
        OSError: the file is there and cannot be opened.
    """
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        try:
            yield loads(line)
        except ValueError as error:
            _warn(f"{file}:{number} cannot be read and is left out: {error}")


@cache
def _warn(text: str) -> None:
    """Log it once: a file may be read several times."""
    LOG.warning(text)


def _plain(value: Any, path: str, found: dict[str, str]) -> Any:
    """Return the value with null for numbers that are not finite, and put these into `found`."""
    if isinstance(value, float) and not math.isfinite(value):
        found[path] = str(value)
        return None
    inner = f"{path}/" if path else ""
    if isinstance(value, Mapping):
        return {key: _plain(each, f"{inner}{key}", found) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{inner}{index}", found) for index, each in enumerate(value)]
    return value


def _restore(values: Any, path: list[str], number: float) -> None:
    """Put a number where `path` leads, if null is there."""
    for part in path[:-1]:
        values = _inside(values, part)
    if isinstance(values, dict) and values.get(path[-1], 0) is None:
        values[path[-1]] = number
    elif isinstance(values, list) and path[-1].isdecimal() and int(path[-1]) < len(values):
        values[int(path[-1])] = number


def _inside(values: Any, part: str) -> Any:
    if isinstance(values, dict):
        return values.get(part)
    return values[int(part)] if isinstance(values, list) and part.isdecimal() and int(part) < len(values) else None
