"""The result of a run."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fptt_dist.history import records_of
from fptt_dist.tasks.data.unknown import many_unknown


@dataclass(frozen=True)
class Result:
    """A finished run, as in `result.json`.

    Everything but `path` and `history` is in that file.

    Attributes:
        task, algorithm: as configured.
        metric: name of the monitored metric.
        higher_is_better: its direction.
        value: the metric on the test set, at the best validation checkpoint.
        validation: the metric of that checkpoint on the validation set.
        metrics: all metrics by name, at "validation" and "test".
        best_batch: the batch of that checkpoint.
        weights: what was evaluated, "center" (W̄) or "weights" (W).
        updates: parameter updates.
        batches: global batches.
        stopped_early: whether `train.patience` ended the run before its last batch.
        sequences: training sequences seen, over all workers.
        seconds: training time, without evaluation and start-up.
        sequences_per_second: sequences / seconds.
        peak_memory_bytes: high-water mark of rank 0: of the GPU's allocator, else of the process.
        parameters: of the whole model.
        recurrent_parameters: of the recurrent layers alone (the paper's way of counting).
        workers: number of workers.
        seed: the run's.
        run_id: the run's identity, minted once.
        versions: of Python, torch and this program.
        unknown_tokens: share and commonest of the tokens read as "<unk>", by split; {} where the task is no text.
    """

    task: str
    algorithm: str
    metric: str
    higher_is_better: bool
    value: float
    validation: float
    metrics: dict[str, dict[str, float]]
    best_batch: int
    weights: str
    updates: int
    batches: int
    stopped_early: bool
    sequences: int
    seconds: float
    sequences_per_second: float
    peak_memory_bytes: int
    parameters: int
    recurrent_parameters: int
    workers: int
    seed: int
    run_id: str
    versions: dict[str, str]
    unknown_tokens: dict[str, Any] = field(default_factory=dict)
    path: Path = field(kw_only=True)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`, in order: of training ("kind": "train"), and evaluations ("evaluation").

        Read when it is asked for, of a run on several workers on rank 0. `pandas.DataFrame(result.history)` is a table
        of them.

        Raises:
            ConfigError: they cannot be read.
        """
        return records_of(self.path)

    @property
    def diverged(self) -> str | None:
        """Why nothing has been learned, and what to do, where a value is not finite; None where both are."""
        if math.isfinite(self.value) and math.isfinite(self.validation):
            return None
        return (
            f"the run diverged: validation {self.metric} {self.validation:g}, test {self.metric} {self.value:g}: lower "
            "optimizer.lr in a new run.dir"
        )

    def __str__(self) -> str:
        early = "; stopped early by train.patience" if self.stopped_early else ""
        return (
            f"{self.task} {self.algorithm}: test {self.metric} {self.value:.5g}{many_unknown(self.unknown_tokens)} at "
            f"batch {self.best_batch} of {self.batches} ({self.updates} updates, {self.seconds:.1f} s{early})"
        )
