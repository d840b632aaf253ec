"""Series from arrays in .npz, .npy and .safetensors files."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fptt_dist.tasks.data.errors import DataError

NAMES = ("inputs", "lengths", "targets", "split")
PARTS = ("train", "validation", "test")
FORMATS = "a .npz or .safetensors file, a folder with inputs.npy, a .csv or a .parquet file"


@dataclass(frozen=True)
class _Mapped:
    """A memory-mapped array, as the place where it is."""

    file: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> Any:
        """Return the place of a memory-mapped array; anything else as it is."""
        if not isinstance(value, np.memmap):
            return value
        return cls(str(value.filename), value.dtype, value.offset, value.shape)

    def open(self) -> NDArray:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


@dataclass(frozen=True)
class RawSeries:
    """Series of one file as read: nothing is scaled, filled or split yet.

    Attributes:
        path: the file.
        inputs: (R, C) numbers, the steps of all series one after another; may be memory-mapped.
        lengths: (N,) int64, steps of each series.
        targets: (N, …) for one target per series, (R, …) for one per step, numbers or strings; None where none were
            asked for.
        features: names of the C channels.
        names: ids of the series for messages; None: their position.
        split: (N,) of "train", "validation" and "test"; None: not said by the file.
        starts: (N,) int64, the row of each series' first step; None: each starts where the one before ends.
        times: (R,) text of the time column; None where it was not asked for.
    """

    path: Path
    inputs: NDArray
    lengths: NDArray
    targets: NDArray | None
    features: list[str]
    names: list[str] | None = None
    split: NDArray | None = None
    starts: NDArray | None = field(default=None)
    times: list[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process gets: of memory-mapped arrays where they are, for they may exceed memory."""
        return {name: _Mapped.of(value) for name, value in vars(self).items()}

    def __setstate__(self, values: dict[str, Any]) -> None:
        vars(self).update({n: value.open() if isinstance(value, _Mapped) else value for n, value in values.items()})

    def first_rows(self) -> NDArray:
        """Return the row of each series' first step (N,)."""
        return np.cumsum(self.lengths) - self.lengths if self.starts is None else self.starts

    def name_of(self, series: int) -> str:
        """Return how messages call a series."""
        return f"series {series}" if self.names is None else f"series {self.names[series]}"


def read_arrays(path: Path, *, targets: bool, per_step: bool) -> RawSeries:
    """Read series from arrays.

    A file (or a folder with a .npy file for each, which are memory-mapped) holds these arrays, N series of C channels:

    - `inputs`: (N, T, C), or (N, T) with one channel; or the steps of all series one after another, (R, C).
    - `lengths`: (N,) steps of each series; needed for (R, C), and where (N, T, C) is padded.
    - `targets`: (N,) or (N, D) for one target per series; (N, T), (N, T, D), (R,) or (R, D) for one per step.
    - `split` (optional): (N,) of "train", "validation" and "test".

    Args:
        path: .npz, .safetensors, or a folder; without targets also a .npy file with the inputs alone.
        targets: whether targets are needed; else they are not read.
        per_step: whether there is a target per step.

    Raises:
        DataError: the file, the array, what was expected and what was found.
    """
    found = _arrays(path, targets=targets)
    if "inputs" not in found:
        there = ", ".join(sorted(found)) or "none"
        raise DataError(f"{path} has no array inputs: expected inputs{', targets' * targets}; found {there}")
    inputs = found["inputs"]
    _require_numbers(path, "inputs", inputs)
    lengths = _lengths(path, found)
    rows, lengths, starts, padded = _flat(path, inputs, lengths)
    wanted = None
    if targets:
        if "targets" not in found:
            raise DataError(f"{path} has no array targets: expected one target per {'step' if per_step else 'series'}")
        wanted = _targets(path, found["targets"], padded, len(lengths), len(rows), per_step=per_step)
    split = _split(path, found["split"], len(lengths)) if "split" in found else None
    features = [str(channel) for channel in range(rows.shape[1])]
    return RawSeries(path, rows, lengths, wanted, features, split=split, starts=starts)


def rows_of(starts: NDArray, lengths: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return the rows of several series one after another, and for each row its step and which of them it is of.

    Args:
        starts: (B,) row of each one's first step.
        lengths: (B,) steps.

    Returns:
        Rows, steps and positions among the B, each (sum of lengths,) int64.
    """
    which = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.asarray(starts)[which] + steps, steps, which


def _arrays(path: Path, *, targets: bool) -> Mapping[str, NDArray]:
    if path.is_dir():
        files = {name: path / f"{name}.npy" for name in NAMES if (path / f"{name}.npy").is_file()}
        if not files:
            raise DataError(f"{path} has no inputs.npy: expected inputs.npy, and beside it targets.npy, lengths.npy")
        return {name: _load_npy(file) for name, file in files.items()}
    if not path.is_file():
        raise DataError(f"there is no file {path}: expected {FORMATS}")
    match path.suffix:
        case ".npz":
            return _load_npz(path)
        case ".safetensors":
            return _load_safetensors(path)
        case ".npy" if not targets:
            return {"inputs": _load_npy(path)}
        case ".npy":
            raise DataError(
                f"{path} is one array: type the folder that it is in, with inputs.npy, targets.npy and lengths.npy"
            )
        case other:
            raise DataError(f"{path} is a file of type {other or 'unknown'}: expected {FORMATS}")


def _load_npy(file: Path) -> NDArray:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        # The rows of an array in Fortran's order are not in a row: read whole.
        return found if found.flags.c_contiguous else np.array(found, order="C")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read: {_reason(error)}") from error


def _load_npz(path: Path) -> Mapping[str, NDArray]:
    found: dict[str, NDArray] = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path} is no .npz file but one array: save it with numpy.savez")
            for name in archive.files:
                if name in NAMES:
                    found[name] = archive[name]
        return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        array = f" (array {name})" if name else ""
        raise DataError(f"{path}{array} cannot be read: {_reason(error)}") from error


def _load_safetensors(path: Path) -> Mapping[str, NDArray]:
    try:
        with safe_open(path, framework="numpy") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys() if name in NAMES}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if any(words in str(error) for words in ("allow_pickle", "Object arrays", "Python objects")):
        return "it is an array of Python objects (dtype object): save an array of numbers, or of fixed-width text"
    return " ".join(str(error).split()) or type(error).__name__


def _require_numbers(path: Path, name: str, array: NDArray) -> None:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} holds {array.dtype}: expected numbers")


def _lengths(path: Path, found: Mapping[str, NDArray]) -> NDArray | None:
    lengths = found.get("lengths")
    if lengths is None:
        return None
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1:
        raise DataError(f"{path}: lengths is {lengths.dtype} of shape {lengths.shape}: expected integers (N,)")
    lengths = np.array(lengths, np.int64)  # in memory
    if len(lengths) and lengths.min() < 1:
        series = int(lengths.argmin())
        raise DataError(f"{path}: series {series} has {lengths[series]} steps: expected at least 1")
    return lengths


def _flat(path: Path, inputs: NDArray, lengths: NDArray | None) -> tuple[NDArray, NDArray, NDArray | None, bool]:
    """Return rows (R, C), lengths, the series' first rows, and whether the steps lie in (N, T)."""
    shape = inputs.shape
    if not shape or 0 in shape:
        raise DataError(f"{path}: inputs has the shape {shape}: expected at least one series, step and channel")
    if inputs.ndim == 2 and lengths is not None and lengths.sum() == len(inputs):
        return inputs, lengths, None, False
    if inputs.ndim not in (2, 3):
        raise DataError(f"{path}: inputs has the shape {shape}: expected (N, T, C), or (R, C) with lengths")
    series, steps = shape[:2]
    counts: NDArray = np.full(series, steps, np.int64) if lengths is None else lengths
    if len(counts) != series and inputs.ndim == 2:
        raise DataError(
            f"{path}: lengths sum to {counts.sum()} over {len(counts)} series, and inputs has the shape {shape}: "
            "expected as many rows of inputs"
        )
    if len(counts) != series:
        raise DataError(f"{path}: {len(counts)} lengths for inputs of shape {shape}: expected {series}")
    most = int(counts.argmax())
    if counts[most] > steps:
        raise DataError(
            f"{path}: series {most} has {counts[most]} steps by lengths, and inputs has the shape {shape}: expected "
            f"at most {steps}"
        )
    rows = inputs.reshape(series * steps, -1)  # a view of what lies in the memory's order
    return rows, counts, np.arange(series, dtype=np.int64) * steps, True


def _targets(path: Path, targets: NDArray, padded: bool, series: int, rows: int, *, per_step: bool) -> NDArray:
    if targets.dtype.kind not in "fiubUS":
        raise DataError(f"{path}: targets holds {targets.dtype}: expected numbers or text")
    if targets.dtype.kind == "S":
        targets = np.char.decode(targets, "utf-8")
    if not per_step:
        if targets.ndim not in (1, 2) or len(targets) != series:
            raise DataError(
                f"{path}: targets has the shape {targets.shape}: expected ({series},) or ({series}, D), one per series"
            )
        return targets
    steps = rows // series if padded else None
    if padded and targets.ndim in (2, 3) and targets.shape[:2] == (series, steps):
        return targets.reshape(rows, *targets.shape[2:])
    if not padded and targets.ndim in (1, 2) and len(targets) == rows:
        return targets
    wanted = f"({series}, {steps}) or ({series}, {steps}, D)" if padded else f"({rows},) or ({rows}, D)"
    raise DataError(f"{path}: targets has the shape {targets.shape}: expected {wanted}, one per step")


def _split(path: Path, split: NDArray, series: int) -> NDArray:
    if split.shape != (series,):
        raise DataError(f"{path}: split has the shape {split.shape}: expected ({series},)")
    text: Any = np.char.decode(split, "utf-8") if split.dtype.kind == "S" else np.array(split)
    if text.dtype.kind == "U":
        wrong = ~np.isin(text, PARTS)
        if not wrong.any():
            return text
        found = repr(str(text[wrong][0]))
    else:
        found = f"values of type {text.dtype}"
    raise DataError(f"{path}: split has {found}: expected train, validation or test for each series")
