"""Random numbers of an example: the same everywhere, and none of the run's."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fptt_dist.tasks import seeded


def draws() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_what_is_drawn_depends_on_seed_epoch_and_example_alone() -> None:
    found = {}
    for key in ((3, 1, 7), (3, 1, 8), (3, 2, 7), (4, 1, 7), (2**62, 0, 0)):
        with seeded(*key):
            found[key] = draws()
        draws()
        with seeded(*key):
            assert draws() == found[key]
    columns = list(zip(*found.values(), strict=True))
    assert [len(set(column)) for column in columns] == [len(found)] * 3


@pytest.mark.parametrize("error", [None, KeyError])
def test_the_streams_from_before_go_on_where_they_stood(error: type[Exception] | None) -> None:
    def interrupted(action: Callable[[], Any]) -> list[tuple[float, ...]]:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        first = draws()
        action()
        return [first, draws()]

    def action() -> None:
        try:
            with seeded(0, 0, 0), seeded(0, 0, 1):
                draws()
                if error is not None:
                    raise error
        except KeyError:
            pass

    assert interrupted(action) == interrupted(lambda: None)
