"""The global random streams: each worker's own, and those of a user's code while it is loaded."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_streams(seed: int) -> Iterator[None]:
    """Seed the global random streams within the context, and put them back after it."""
    with kept_streams():
        seed_worker(seed, 0)
        yield


@contextmanager
def kept_streams(device: torch.device | None = None) -> Iterator[None]:
    """Put the global random streams back after the context; those of `device` too, if it is a GPU."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - a user's code may draw from it
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def seed_worker(seed: int, rank: int, *again: int) -> None:
    """Seed this worker's own random streams (dropout, a user's layer), which differ by rank.

    `again`: the batch and the number of workers, where a run is resumed with another number of them.
    """
    own = int(np.random.SeedSequence([seed, rank, *again]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002 - a user's layer may draw from it
