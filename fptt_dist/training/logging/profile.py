"""Trace of some batches by torch's profiler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fptt_dist.config import ConfigError
from fptt_dist.files import write_error
from fptt_dist.training.run_dir import RunDirectory


class BatchProfile:
    """Writes the trace of a range of batches, `rank-R-batches-FIRST-LAST.json`, one file per worker and start.

    As a context manager it writes at the end what the range has so far.

    Args:
        run: the run's folder; its `logging.profile` has the first and the last batch, counted from 1.
        total_batches: of the run.
        rank: this worker's.
        device: where it computes.

    Raises:
        ConfigError: the run ends before the first of them.
    """

    def __init__(self, run: RunDirectory, total_batches: int, rank: int, device: torch.device) -> None:
        batches = run.config.logging.profile
        if batches is not None and batches[0] > total_batches:
            raise ConfigError(
                f"logging.profile={list(batches)}: the run has {total_batches} batches: type a first one within them, "
                "or logging.profile=null"
            )
        self._folder = run.path / "profile"
        self._range = range(0) if batches is None else range(batches[0], batches[1] + 1)
        self._rank = rank
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profile: profile | None = None
        self._first = self._last = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._profile is not None:
            with suppress(OSError) if error is not None else nullcontext():
                self._write()

    @contextmanager
    def batch(self, number: int) -> Iterator[None]:
        """Trace a batch, the `number`-th of the run, within the context, if it is one of those to trace.

        Raises:
            OSError: the trace could not be written.
        """
        if number not in self._range:
            yield
            return
        if self._profile is None:
            self._first = number
            self._profile = profile(activities=self._activities, acc_events=True)
            self._profile.start()
        self._last = number
        with record_function("fptt_dist::batch"):
            yield
        if number == self._range[-1]:
            self._write()

    def _write(self) -> None:
        assert self._profile is not None
        self._profile.stop()
        path = self._folder / f"rank-{self._rank}-batches-{self._first}-{self._last}.json"
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(temporary))
            os.replace(temporary, path)
        except OSError as error:
            raise write_error(path, error) from error
        finally:
            self._profile = None
