"""Properties of a metric, from what a run directory records of it, or by its name or the task's."""

from collections.abc import Mapping
from typing import Any

from fptt_dist.tasks import Adding, Copying, Language, Pixels

_HIGHER_IS_BETTER = {
    Adding.metric: Adding.higher_is_better,
    Copying.metric: Copying.higher_is_better,
    Pixels.metric: Pixels.higher_is_better,
    "perplexity": Language.higher_is_better,
    "bits_per_character": Language.higher_is_better,
}
CHANCE = {"adding": 1.0 / 6.0}  # by task: the metric of always predicting the targets' mean
LOG_METRICS = ("mse", "perplexity")  # shown on a logarithmic scale


def higher_is_better(record: Mapping[str, Any]) -> bool | None:
    """Return the direction of the metric of a result or an evaluation; None where nothing says it."""
    return record.get("higher_is_better", _HIGHER_IS_BETTER.get(str(record.get("metric"))))
