"""Trackio as a tracker, by a callback: configuration, metrics at their batch, result; a resumed run continues its own.

Type:

    python examples/trackio_tracker.py --resume            then: trackio show --project fptt

It trains the first half of a run, with --resume then the other half, and prints how many losses Trackio has. Copy the
class, and change what it writes.
"""

import argparse

import trackio
from trackio.sqlite_storage import SQLiteStorage

from fptt_dist import Callback, fit
from fptt_dist.training.callbacks import BatchEnd, RunStart, Validation
from fptt_dist.training.result import Result


class TrackioTracker(Callback):
    """Write a run to Trackio's project "fptt"; its name there is the run's identity."""

    def on_start(self, event: RunStart) -> None:
        """Start a run, or continue the one with this identity."""
        config = event.config.model_dump(mode="json")
        trackio.init(project="fptt", name=event.run_id, config=config, resume="allow", embed=False)

    def on_batch_end(self, event: BatchEnd) -> None:
        """Write the loss and its companions."""
        if event.record is not None:
            numbers = {key: value for key, value in event.record.items() if isinstance(value, int | float)}
            trackio.log(numbers, step=event.batch)

    def on_validation(self, event: Validation) -> None:
        """Write the metrics."""
        trackio.log({f"validation_{name}": value for name, value in event.metrics.items()}, step=event.batch)

    def on_end(self, result: Result) -> None:
        """Write the result."""
        trackio.log({"test": result.value}, step=result.batches)
        trackio.finish()

    def on_error(self, error: BaseException) -> None:
        """Write what is still to be written."""
        trackio.finish()


parser = argparse.ArgumentParser(description="Trackio as a tracker")
parser.add_argument("--resume", action="store_true", help="train the other half too, in the same run of Trackio's")
parser.add_argument("--folder", default="runs/trackio", help="the run's folder (default: runs/trackio)")
options = parser.parse_args()

config = {"extends": "add_task", "run.dir": options.folder, "train.max_batches": 20, "checkpoint.every_batches": 20}
result = fit(config, callbacks=[TrackioTracker()])
if options.resume:
    result = fit({**config, "train.max_batches": 40, "resume": "auto"}, callbacks=[TrackioTracker()])

lines = SQLiteStorage.get_logs("fptt", result.run_id)
losses = [line["step"] for line in lines if "loss" in line]
print(f"{len(losses)} losses in one run, the last one at batch {losses[-1]}, test error {lines[-1]['test']:.4f}")
