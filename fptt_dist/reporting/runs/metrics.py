"""Properties of a metric by its name, or the task's, which is all that a run directory records of it."""

from fptt_dist.tasks import Adding, Copying, Language, Pixels

HIGHER_IS_BETTER = {
    Adding.metric: Adding.higher_is_better,
    Copying.metric: Copying.higher_is_better,
    Pixels.metric: Pixels.higher_is_better,
    "perplexity": Language.higher_is_better,
    "bits_per_character": Language.higher_is_better,
}
CHANCE = {"adding": 1.0 / 6.0}  # by task: the metric of always predicting the targets' mean
LOG_METRICS = ("mse", "perplexity")  # shown on a logarithmic scale
