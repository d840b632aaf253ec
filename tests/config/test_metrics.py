"""The keys of a task's metrics."""

import pytest
from pydantic import ValidationError

from fptt_dist.config.schema.tasks import MeasuredTask


def test_metrics_are_a_list_and_the_first_is_monitored() -> None:
    assert MeasuredTask().metrics is MeasuredTask().monitor is None
    section = MeasuredTask.model_validate({"metrics": ["mae", "mine.py:Largest"], "monitor": "Largest"})
    assert (section.metrics, section.monitor) == (("mae", "mine.py:Largest"), "Largest")


@pytest.mark.parametrize("metrics", [[], "mae", [1], ["s3://bucket/mine.py:Largest"]], ids=str)
def test_what_is_no_list_of_metrics(metrics: object) -> None:
    with pytest.raises(ValidationError):
        MeasuredTask.model_validate({"metrics": metrics})
