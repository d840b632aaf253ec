"""Checkpoints that are written while training continues: the same files, from a copy of the state in host memory."""

import copy
import threading
from pathlib import Path
from typing import Any

import torch

from fptt_dist.training.checkpoint.store import CheckpointStore, Files


class AsyncCheckpointStore(CheckpointStore):
    """A store whose `save` takes a copy and returns; a thread writes it, one save at a time.

    Args are those of `CheckpointStore`. Where there are other workers, `wait_for_all` is called on the thread while the
    main thread is in collectives of its own, so it must be a barrier of a process group that nothing else uses; what it
    raises is raised by the next `save` or `wait`.

    A process that ends during a save leaves what a killed one leaves: `step-….tmp`, which is not a checkpoint.
    """

    _thread: threading.Thread | None = None
    _error: BaseException | None = None

    def save(self, step: int, shared: Files, own: Files, *, best: bool = False) -> Path:
        """Start writing one checkpoint, when the previous one is written; called by all workers together.

        Args:
            step: see `CheckpointStore.save`, as for the others.
            shared: may change as soon as this returns.
            own: may change too.
            best: whether the pointer "best" shall name it.

        Returns:
            The folder that the checkpoint will have; it is there after `wait`.

        Raises:
            OSError: the previous save could not be written.
            Exception: whatever else ended it, e.g. a lost worker.
        """
        self.wait()
        copies = _copied(shared) if self.rank == 0 else {}, _copied(own)
        # A daemon, so that a process that must end need not wait for a disk or for another worker.
        thread = threading.Thread(target=self._save, args=(step, *copies, best), name="checkpoint", daemon=True)
        thread.start()
        self._thread = thread
        return self.path_of(step)

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            OSError: the save could not be written; raised once.
            Exception: whatever else ended it, e.g. a lost worker.
        """
        self._join()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None

    def set_pointer(self, name: str, folder: Path) -> None:
        """See `CheckpointStore.set_pointer`; after a save under way, whose error is left to `wait`."""
        self._join()
        super().set_pointer(name, folder)

    def resolve_pointer(self, name: str) -> Path | None:
        """See `CheckpointStore.resolve_pointer`; after a save under way, whose error is left to `wait`."""
        self._join()
        return super().resolve_pointer(name)

    def newest(self) -> Path | None:
        """See `CheckpointStore.newest`; after a save under way, whose error is left to `wait`."""
        self._join()
        return super().newest()

    def _save(self, step: int, shared: Files, own: Files, best: bool) -> None:
        """Save, on the thread."""
        try:
            super().save(step, shared, own, best=best)
        except BaseException as error:
            self._error = error

    def _join(self) -> None:
        """Wait for the thread, unless this is it: a save sets and resolves pointers itself."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None


def _copied(files: Files) -> dict[str, dict[str, Any]]:
    """Return the same content in host memory that nothing else refers to."""
    return {
        name: {
            key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for key, value in content.items()
        }
        if name.endswith(".safetensors")
        else copy.deepcopy(dict(content))
        for name, content in files.items()
    }
