"""What is known of a metric by its name, which is all that a run's folder says of it."""

from fptt_dist.tasks import Adding, Copying, Language, Pixels

HIGHER_IS_BETTER = {
    Adding.metric: Adding.higher_is_better,
    Copying.metric: Copying.higher_is_better,
    Pixels.metric: Pixels.higher_is_better,
    "perplexity": Language.higher_is_better,
    "bits_per_character": Language.higher_is_better,
}
LOG_METRICS = ("mse", "perplexity")  # shown by their logarithms
