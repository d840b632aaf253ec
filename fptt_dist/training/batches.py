"""The batches that a run trains on, in its order."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fptt_dist.config import Config, ConfigError
from fptt_dist.parallel.comm.process_group import START_SECONDS
from fptt_dist.tasks import Batch, Task
from fptt_dist.training.data_workers import BatchOrder, DataWorkers, pack
from fptt_dist.training.train_state import TrainState


def count_batches(config: Config, task: Task) -> tuple[int, int]:
    """Count the batches of an epoch and of the run.

    Raises:
        ConfigError: there are fewer sequences than one batch has.
    """
    per_epoch = task.train_examples // config.train.batch_size
    if per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is more than the {task.train_examples} training "
            "sequences of an epoch: type a smaller train.batch_size"
        )
    limits = [config.train.max_batches, config.train.max_epochs and config.train.max_epochs * per_epoch]
    return per_epoch, min(limit for limit in limits if limit is not None)


class TrainBatches:
    """This rank's training batches: put together as they are asked for, or by data workers ahead of time.

    The order is the same for any number of data workers, and they consume none of the run's random numbers.

    Args:
        task: puts them together.
        order: of the batches.
        config: the run's.
        device: where they are trained on.

    Raises:
        ConfigError: the task cannot be sent to a data worker, or this process may not start any.
    """

    def __init__(self, task: Task, order: BatchOrder, config: Config, device: torch.device) -> None:
        self._task = task
        self._order = order
        self._device = device
        self._count = config.data.workers
        self._timeout = config.parallel.timeout_seconds
        if self._count:
            pack(task, self._count)  # refused before the run's folder is there
        self._workers: DataWorkers | None = None
        self._waited = 0.0
        self._seconds = 0.0

    @contextmanager
    def ahead(self, position: TrainState, total: int) -> Iterator[None]:
        """Have the batches from `position` to `total` put together ahead of time within the context."""
        self._seconds = position.seconds
        if not self._count:
            yield
            return
        with DataWorkers(
            self._task,
            self._order,
            range(position.batch, total),
            workers=self._count,
            seconds=self._timeout,
            start_seconds=max(START_SECONDS, self._timeout),
            flush_denormal=self._device.type == "cpu",
            pin=self._device.type == "cuda",
        ) as self._workers:
            try:
                yield
            finally:
                self._workers = None

    def get(self, number: int) -> Batch:
        """Return batch `number` of the run, from 0, on the device and with zeros for padding.

        Raises:
            DataError: a data worker could not put it together.
            OSError: a data worker has died, or takes too long.
        """
        began = time.perf_counter()
        batch = self.on_host(number) if self._workers is None else self._workers.get(number)
        self._waited += time.perf_counter() - began
        return batch.to(self._device).without_padding()

    def on_host(self, number: int) -> Batch:
        """Return batch `number` as the task puts it together in this process."""
        return self._order.batch(self._task, number)

    def wait_share(self, seconds: float) -> float:
        """Return the share of the training time since the last call that was spent waiting for batches, 0 to 1.

        Args:
            seconds: of training so far.
        """
        share = self._waited / max(seconds - self._seconds, 1e-9)
        self._waited, self._seconds = 0.0, seconds
        return share
