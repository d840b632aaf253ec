"""A checkpoint on disk: a folder of safetensors and JSON files that is either complete or not there.

    checkpoints/step-00000400/manifest.json      names, bytes and checksums of all other files, and its own checksum;
                                                 written last
                              model.safetensors, optimizer.safetensors, …
                              rank/0/…           what differs by rank
    checkpoints/latest, best                     names of folders

The files are written into `step-….tmp`, flushed to the disk, and the folder is renamed when the manifest is complete.
Nothing is ever pickled.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fptt_dist.config import ConfigError
from fptt_dist.files import write_atomic
from fptt_dist.models.serialization import write_tensors

SCHEMA_VERSION = 7
MANIFEST = "manifest.json"
ENTRIES = "entries.json"  # of the manifest, from a worker other than rank 0, until rank 0 has taken them
BLOCK = 2**23  # bytes read at once: between two reads the thread that checks may have to wait for the one that trains
LOG = logging.getLogger("fptt_dist")

OWN_CHECKSUM = "sha256"  # the manifest's key of its own checksum
STEP = re.compile(r"step-(\d{8,})", re.ASCII)  # eight digits, more only of a run of more batches

Files = Mapping[str, Mapping[str, Any]]
"""Content by file name: tensors for `*.safetensors`, JSON values for `*.json`."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: the folder `checkpoints/` of the run.
        keep_last: number of the newest to keep, besides the best.
        rank: this worker; rank 0 writes what is equal everywhere.
        world: number of workers.
        wait_for_all: returns when all workers have called it with the same name.
        check: returns why the content of a folder with right checksums makes no sense, None if it does.

    Attributes:
        saved: the newest checkpoint that all workers have saved here, None before the first.

    As a context manager it waits at the end for a save in progress.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep_last: int = 2,
        rank: int = 0,
        world: int = 1,
        wait_for_all: Callable[[str], None] = lambda name: None,
        check: Callable[[Path], str | None] = lambda folder: None,
    ) -> None:
        self.root = root
        self.keep_last = keep_last
        self.rank = rank
        self.world = world
        self.wait_for_all = wait_for_all
        self.check = check
        self.saved: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception as lost:
            if error is None:
                raise
            LOG.warning("%s", lost)  # the exception that ended the run is raised all the same

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` batches, whether it is there or not."""
        return self.root / f"step-{step:08d}"

    def validate(self, folder: Path) -> str | None:
        """Return why a folder is not a valid checkpoint of this run, in words; None if it is one.

        Raises:
            ConfigError: it was written by another version of this program.
        """
        return validate(folder) or self.check(folder)

    def save(self, step: int, shared: Files, own: Files, *, best: bool = False) -> Path:
        """Write one checkpoint; called by all workers together.

        Args:
            step: batches trained so far; the folder's name.
            shared: what is equal on all workers; rank 0's is written.
            own: what differs; written under `rank/<rank>/`.
            best: whether the pointer "best" shall name it.

        Returns:
            The checkpoint's folder. If a complete one of this step is there already, it is left as it is.

        Raises:
            OSError: the disk is full or not writable. Earlier checkpoints are untouched.
        """
        final = self.path_of(step)
        temporary = final.with_name(f"{final.name}.tmp")
        if self.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        self.wait_for_all("checkpoint begins")
        try:
            if self.validate(final) is not None:
                self._write(step, temporary, final, shared, own)
            if self.rank == 0:
                self.set_pointer("latest", final)
                if best:
                    self.set_pointer("best", final)
                self._prune(final)
        except OSError as error:
            # Another worker may still be writing its shard, and its folder must not disappear.
            own_part = temporary if self.world == 1 else temporary / "rank" / str(self.rank)
            shutil.rmtree(own_part, ignore_errors=True)
            raise OSError(
                f"the checkpoint {final} could not be written, earlier ones are untouched: {error}"
            ) from error
        self.wait_for_all("checkpoint done")
        self.saved = final
        return final

    def wait(self) -> None:
        """Return when no save is in progress: at once, as this `save` returns at its end."""

    def _write(self, step: int, temporary: Path, final: Path, shared: Files, own: Files) -> None:
        """Write all files, then the manifest, then rename the folder, which makes it a checkpoint."""
        files = {f"rank/{self.rank}/{name}": content for name, content in own.items()}
        if self.rank == 0:
            files = {**shared, **files}
        # Each worker hashes what it has written: on a shared file system rank 0 would read all of it back.
        entries: dict[str, Any] = {}
        for name, content in files.items():
            _write(temporary / name, content)
            entries[name] = entry(temporary / name)
        if self.rank > 0:
            _write(temporary / f"rank/{self.rank}" / ENTRIES, entries)
        self.wait_for_all("checkpoint written")
        if self.rank == 0:
            for rank in range(1, self.world):
                entries |= read_values(temporary / f"rank/{rank}", ENTRIES)
                (temporary / f"rank/{rank}" / ENTRIES).unlink()
            if (temporary / "rank").is_dir():
                _flush_folder(temporary / "rank")
            manifest: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "step": step, "world": self.world}
            manifest["files"] = dict(sorted(entries.items()))
            _write(temporary / MANIFEST, {**manifest, OWN_CHECKSUM: checksum_of_manifest(manifest)})
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            _flush_folder(self.root)

    def set_pointer(self, name: str, folder: Path) -> None:
        """Make the pointer `name` ("latest" or "best") name `folder`, by an atomic replacement."""
        if self.rank == 0:
            write_atomic(self.root / name, folder.name + "\n")

    def resolve_pointer(self, name: str) -> Path | None:
        """Return the folder that the pointer `name` names, if it is there and valid."""
        folder = self._named_by(name)
        if folder is None:
            return None
        problem = self.validate(folder)
        if problem is not None:
            LOG.warning("%s is skipped: %s", folder, problem)
            return None
        return folder

    def _named_by(self, name: str) -> Path | None:
        """Return the folder that the pointer `name` names, whether it is valid or not; never one elsewhere."""
        pointer = self.root / name
        if not pointer.is_file():
            return None
        with pointer.open("rb") as file:
            text = file.read(64).decode(errors="replace").strip()
        if not STEP.fullmatch(text):
            LOG.warning("the pointer %s is skipped: it names %r, not a folder such as step-00000400", pointer, text)
            return None
        return self.root / text

    def _folders(self) -> list[Path]:
        """Return the folders with a checkpoint's name, oldest first."""
        return sorted((folder for folder in self.root.glob("step-*") if STEP.fullmatch(folder.name)), key=step_of)

    def newest(self) -> Path | None:
        """Return the newest valid checkpoint; truncated or corrupt ones are skipped with a warning.

        Raises:
            ConfigError: it was written by another version of this program.
        """
        for folder in reversed(self._folders()):
            problem = self.validate(folder)
            if problem is None:
                return folder
            LOG.warning("checkpoint %s is skipped, the previous one is used: %s", folder, problem)
        return None

    def has_any(self) -> bool:
        """Return whether there is a checkpoint, valid or not."""
        return bool(self._folders())

    def _prune(self, newest: Path) -> None:
        # Folders later than the one just written are corrupt: the run was resumed from before them.
        kept = [folder for folder in self._folders() if step_of(folder) <= step_of(newest)][-self.keep_last :]
        best = self._named_by("best")  # not validated again at each save
        for folder in self.root.glob("step-*"):
            if folder not in kept and folder != best:
                shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    """Return the batches that a checkpoint's folder has in its name.

    Raises:
        ValueError: it is not a checkpoint's name.
    """
    named = STEP.fullmatch(folder.name)
    if named is None:
        raise ValueError(f"{folder.name} is not a checkpoint's name")
    return int(named[1])


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of one `*.safetensors` file of a checkpoint, on the CPU; none if there is no such file."""
    return load_file(folder / name) if (folder / name).is_file() else {}


def read_values(folder: Path, name: str) -> dict[str, Any]:
    """Read the values of one `*.json` file of a checkpoint."""
    return json.loads((folder / name).read_text())


def listed_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Return bytes and checksum of each file that a checkpoint's manifest lists, by name."""
    files = read_values(folder, MANIFEST)["files"]
    return {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}


def validate(folder: Path) -> str | None:
    """Return why a folder is not a complete checkpoint with right checksums, in words; None if it is one.

    Raises:
        ConfigError: it was written by another version of this program.
    """
    try:
        manifest = read_values(folder, MANIFEST)
        version = int(manifest["schema_version"])
        # Before the version: one flipped bit of it must not refuse the whole run. Early versions wrote no checksum.
        has_checksum = OWN_CHECKSUM in manifest or version >= SCHEMA_VERSION
        if has_checksum and manifest.get(OWN_CHECKSUM) != checksum_of_manifest(manifest):
            return f"{MANIFEST} is corrupt: its own checksum differs"
        _require_schema(folder, version)
        files = listed_files(folder)
    except FileNotFoundError:
        return f"no {MANIFEST}: it was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name, (size, checksum) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _checksum(path) != checksum:
            return f"{name} is corrupt: its checksum differs from the manifest's"
    return None


def _require_schema(folder: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{folder} has checkpoint schema {version}, and this version of fptt_dist reads up to {SCHEMA_VERSION}: "
            "update fptt_dist"
        )
    if version < SCHEMA_VERSION:
        raise ConfigError(
            f"{folder} has checkpoint schema {version} of an earlier fptt_dist, this one reads {SCHEMA_VERSION}: "
            "continue with the version in versions.json, or type run.dir=… for a new run"
        )


def checksum_of_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest's values, without its own checksum."""
    values = {key: value for key, value in manifest.items() if key != OWN_CHECKSUM}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def entry(path: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest."""
    return {"bytes": path.stat().st_size, "sha256": _checksum(path)}


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write one file and flush it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        try:
            write_tensors(_apart(content), path)
        except SafetensorError as error:  # a full disk, among others
            raise OSError(f"{path.name}: {error}") from error
    else:
        path.write_text(json.dumps(content, indent=1) + "\n")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    _flush_folder(path.parent)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor on the CPU, in memory that is its own and no larger, as the format requires."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() > own.nbytes or storage.data_ptr() in seen:
            own = own.clone()
        seen.add(storage.data_ptr())
        found[name] = own
    return found


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
