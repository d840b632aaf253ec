"""Metrics over workers in processes of their own, as thread replicas have them in `tests/tasks/test_metrics.py`."""

import pytest
import torch

from fptt_dist.parallel import LaunchEnvironment, communicator
from fptt_dist.training.evaluation import evaluate
from tests.parallel.pool import Pool
from tests.tasks.metrics import Echo, Given, measured, sequences

CPU = torch.device("cpu")
NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")


def values(environment: LaunchEnvironment, shares: list[int]) -> dict[str, float]:
    task = Given(measured("class", NAMES), sequences("class"), shares)
    return evaluate(Echo(), task, communicator(environment, CPU), "test", CPU)


@pytest.mark.slow  # each process imports torchmetrics
def test_the_value_is_that_of_one_worker(pool: Pool) -> None:
    alone = values(LaunchEnvironment(), [11])
    for shares in ([7, 4], [0, 11]):
        one, other = pool.run(values, shares)
        assert one == other == pytest.approx(alone, rel=1e-12)
