"""MLflow as a tracker, by a callback: configuration, metrics at their batch, result; a resumed run continues its own.

Type:

    python examples/mlflow_tracker.py --resume             then: mlflow ui --backend-store-uri sqlite:///mlflow.db
    MLFLOW_TRACKING_URI=http://SERVER python examples/mlflow_tracker.py --resume

It trains the first half of a run, with --resume then the other half, and prints the last loss and the test error that
MLflow has. Copy the class, and change what it writes.
"""

import argparse

import mlflow

from fptt_dist import Callback, fit
from fptt_dist.training.callbacks import BatchEnd, RunStart, Validation
from fptt_dist.training.result import Result
from fptt_dist.training.run_dir import flat_values


class MlflowTracker(Callback):
    """Write a run to MLflow's experiment "fptt"."""

    def on_start(self, event: RunStart) -> None:
        """Start a run, or continue the one with this identity."""
        mlflow.set_experiment("fptt")
        found = mlflow.search_runs(filter_string=f"tags.run_id = '{event.run_id}'", output_format="list")
        mlflow.start_run(found[0].info.run_id if found else None, run_name=event.folder.name)
        mlflow.set_tag("run_id", event.run_id)
        if not found:
            mlflow.log_params(flat_values(event.config))

    def on_batch_end(self, event: BatchEnd) -> None:
        """Write the loss and its companions."""
        if event.record is not None:
            numbers = {key: float(value) for key, value in event.record.items() if isinstance(value, int | float)}
            mlflow.log_metrics(numbers, step=event.batch)

    def on_validation(self, event: Validation) -> None:
        """Write the metrics."""
        mlflow.log_metrics({f"validation_{name}": value for name, value in event.metrics.items()}, step=event.batch)

    def on_end(self, result: Result) -> None:
        """Write the result."""
        mlflow.log_metric("test", result.value, step=result.batches)
        mlflow.end_run()

    def on_error(self, error: BaseException) -> None:
        """Mark the run as failed, until it resumes."""
        mlflow.end_run("FAILED")


parser = argparse.ArgumentParser(description="MLflow as a tracker")
parser.add_argument("--resume", action="store_true", help="train the other half too, in the same run of MLflow's")
parser.add_argument("--folder", default="runs/mlflow", help="the run's folder (default: runs/mlflow)")
options = parser.parse_args()

config = {"extends": "add_task", "run.dir": options.folder, "train.max_batches": 20, "checkpoint.every_batches": 20}
fit(config, callbacks=[MlflowTracker()])
if options.resume:
    fit({**config, "train.max_batches": 40, "resume": "auto"}, callbacks=[MlflowTracker()])

[run] = mlflow.search_runs(order_by=["start_time DESC"], max_results=1, output_format="list")
losses = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
error = run.data.metrics["test"]
print(f"{len(losses)} losses in one run, the last one at batch {losses[-1].step}, test error {error:.4f}")
