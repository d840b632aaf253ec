"""What TensorBoard shows of a run besides its scalars: charts that belong together, columns that compare runs."""

from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fptt_dist.algorithm import PROCEDURES
from fptt_dist.config import Config
from fptt_dist.training.build_strategy import updates_of

BEST_VALIDATION = "Result/best_validation"
TEST = "Result/test"
LAYOUT = {
    "Loss": {
        "training loss, and the validation metric": [r"Loss/train$", r"Loss/validation_\w+$"],
        "loss of each window, 001 = the first steps of the sequence": [r"Windows/loss_\d+$"],
        "training metric of each window": [r"Windows/(?!loss_)\w+_\d+$"],
    },
    "FPTT": {
        "‖W − W̄‖, distance of the weights to the slow variable": [r"FPTT/center_distance$"],
        "‖λ‖, norm of the dual": [r"FPTT/dual_norm$"],
        "norm of the force / norm of the gradient": [r"FPTT/force_over_gradient$"],
        "norm of the gradient": [r"Loss/gradient_norm$"],
        "α, strength of the pull": [r"FPTT/alpha$"],
        "learning rate": [r"FPTT/lr$"],
    },
    "Consensus": {
        "drift, largest ‖W_r − mean‖ / ‖mean‖ at the last agreement": [r"Consensus/drift$"],
        "sent by rank 0 since the last record (bytes)": [r"Consensus/bytes_sent$"],
        "share of the training time spent waiting in collectives (0 to 1)": [r"Consensus/blocked_share$"],
    },
    "Speed": {
        "training speed (sequences per second)": [r"Speed/sequences_per_second$"],
        "peak memory of rank 0 (bytes)": [r"Speed/memory_bytes$"],
    },
}
"""Categories, their charts' titles, and expressions of the tags of each chart's lines.

TensorBoard merges the layouts of all runs in a folder and drops equal charts, so that they must not depend on the run.
"""


def columns(config: Config, workers: int) -> dict[str, str | int | float]:
    """The values of a run that TensorBoard's HParams compares with those of others, by their keys.

    They are those that took effect: K where `fptt.windows` is null, α = 0 without a pull, and as `parallel.every`, H,
    the updates between two agreements, or 1 where gradients are averaged at every update. A value is of one type in all
    runs, because TensorBoard neither sorts nor filters a column of both numbers and texts.

    Args:
        config: the run's.
        workers: processes; one alone has no `parallel.every`.
    """
    values = {
        "task.name": config.task.name,
        "algorithm": config.algorithm,
        "model.cell": config.model.cell,
        "model.hidden": config.model.hidden,
        "fptt.alpha": config.fptt.alpha if PROCEDURES[config.algorithm].has_force else 0.0,
        "fptt.beta": config.fptt.beta,
        "fptt.windows": config.windows,
        "optimizer.name": config.optimizer.name,
        "optimizer.lr": config.optimizer.lr,
        "train.batch_size": config.train.batch_size,
        "workers": workers,
        "seed": config.seed,
    }
    if workers > 1:
        agrees = config.parallel.strategy in ("auto", "consensus", "hierarchical")
        every = getattr(config.parallel, "every", None) or updates_of(config)
        values["parallel.every"] = every if agrees else 1
    return values


def begin(board: SummaryWriter, config: Config, workers: int) -> None:
    """Write the layout and the columns of a run that starts or goes on."""
    shown = {title: charts for title, charts in LAYOUT.items() if title != "Consensus" or workers > 1}
    board.add_custom_scalars(
        {
            title: {name: ["Multiline", tags] for name, tags in charts.items()}  # torch's word for lines in one chart
            for title, charts in shown.items()
        }
    )
    values = columns(config, workers)
    # TensorBoard takes the columns of a folder from any one of its runs: each names all.
    experiment, _, _ = _hparams({"parallel.every": 0, **values})
    _, start, _ = _hparams(values)
    _add(board, experiment, start)


def end(board: SummaryWriter) -> None:
    """Write that the run is finished."""
    _, _, finished = _hparams({})
    _add(board, finished)


def _hparams(values: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The summaries of the experiment, with the columns' types, of a run's start with its values, and of its end."""
    return hparams(values, {BEST_VALIDATION: 0.0, TEST: 0.0})


def _add(board: SummaryWriter, *summaries: Any) -> None:
    assert board.file_writer is not None
    for summary in summaries:
        board.file_writer.add_summary(summary)
