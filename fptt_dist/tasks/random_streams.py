"""Random numbers of one example: the same in every process, in every order."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, epoch: int, example: int) -> Iterator[None]:
    """Seed the global random streams within the context, and put them back on leaving, also after an error.

    What is drawn within it is a pure function of the three numbers: it depends neither on the process nor on what was
    drawn before, and the run's own streams (dropout) do not notice. The streams are those of torch on the CPU, of NumPy
    (`numpy.random.rand` and the like) and of Python's `random`.

    Args:
        seed: the run's, at least 0.
        epoch: from 0.
        example: its global id.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - a user may draw from it
    own = int(np.random.SeedSequence([seed, epoch, example]).generate_state(1, np.uint64)[0] >> 1)
    try:
        torch.default_generator.manual_seed(own)  # torch.manual_seed would seed the GPUs' streams too
        np.random.seed(own % 2**32)  # noqa: NPY002
        random.seed(own)
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
