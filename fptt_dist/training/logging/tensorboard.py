"""TensorBoard's layout of charts and HParams columns for a run, besides its scalars."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fptt_dist.algorithm import SCHEMES
from fptt_dist.config import Config, WholeNetwork
from fptt_dist.config.schema.section import choice_of
from fptt_dist.training.setup.engine import updates_of

API: Any = api_pb2  # their classes are made at run time
PLUGIN: Any = plugin_data_pb2
SUMMARY: Any = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
BEST_VALIDATION = "Result/best_validation"
TEST = "Result/test"
SHOWN = ("algorithm", "fptt.alpha", "fptt.windows", "parallel.sync_every", "workers")
"""The columns that TensorBoard shows before a user chooses others: the first five, and these are the first."""
WINDOW_METRICS = "training metric of each window"
LAYOUT = {
    "Loss": {
        "training loss, and the validation metric": [r"Loss/train$", r"Loss/validation_\w+$"],
        "loss of each window (001: the first steps)": [r"Windows/loss_\d+$"],
        WINDOW_METRICS: [r"Windows/(?!loss_)\w+_\d+$"],
    },
    "FPTT": {
        "‖W − W̄‖, distance to the slow weights": [r"FPTT/center_distance$"],
        "‖λ‖, norm of the dual": [r"FPTT/dual_norm$"],
        "norm of the regularizer's gradient / norm of the loss's": [r"FPTT/regularizer_over_gradient$"],
        "norm of the gradient": [r"Loss/gradient_norm$"],
        "α, strength of the regularizer": [r"FPTT/alpha$"],
        "learning rate": [r"FPTT/lr$"],
    },
    "Consensus": {
        "drift, largest ‖W_r − mean‖ / ‖mean‖": [r"Consensus/drift$"],
        "sent since the last record (bytes)": [r"Consensus/bytes_sent$"],
        "time spent in collectives (share, 0 to 1)": [r"Consensus/blocked_share$"],
    },
    "Speed": {
        "training speed (sequences per second)": [r"Speed/sequences_per_second$"],
        "time spent waiting for data (share, 0 to 1)": [r"Speed/data_wait$"],
        "peak memory of rank 0 (bytes)": [r"Speed/memory_bytes$"],
    },
}
"""Categories, their charts' titles, and expressions of the tags of each chart's lines.

TensorBoard merges the layouts of all runs in a folder and drops equal charts: a chart must not depend on the run.
"""


def columns(config: Config, workers: int) -> dict[str, str | int | float]:
    """The values of a run that TensorBoard's HParams compares with those of others, by their keys.

    They are those that took effect: K where `fptt.windows` is null, α = 0 without a regularizer, and as
    `parallel.sync_every`, H, the updates between two syncs, or 1 where gradients are averaged at every update. A
    value has the same type in all runs, because TensorBoard neither sorts nor filters a column of numbers and strings.

    Args:
        config: the run's.
        workers: number of workers; a single one has no `parallel.sync_every`.
    """
    values = {
        "task.name": config.task.name,
        "algorithm": config.algorithm,
        **_of_model(config),
        "fptt.alpha": config.fptt.alpha if SCHEMES[config.algorithm].has_regularizer else 0.0,
        "fptt.beta": config.fptt.beta,
        "fptt.windows": config.windows,
        "optimizer.name": config.optimizer.name,
        "optimizer.lr": config.optimizer.lr,
        "train.batch_size": config.train.batch_size,
        "workers": workers,
        "seed": config.seed,
    }
    if workers > 1:
        syncs = config.parallel.strategy in ("auto", "consensus", "hierarchical")
        every = getattr(config.parallel, "sync_every", None) or updates_of(config)
        values["parallel.sync_every"] = every if syncs else 1
    return values


def _of_model(config: Config) -> dict[str, str | int]:
    """Return the columns of a network: of one of the user's its class, which takes the place of the layer."""
    model = config.model
    if isinstance(model, WholeNetwork):
        return {"model.layer": model.network}
    return {"model.layer": model.layer, "model.hidden": model.hidden}


def begin(board: SummaryWriter, config: Config, workers: int) -> None:
    """Write the columns of a run that starts or resumes."""
    _, start, _ = hparams(columns(config, workers), {})
    _add(board, _experiment(config), start)


@contextmanager
def without_traceback() -> Iterator[None]:
    """Print no traceback of the thread that writes TensorBoard's files: the next write or flush raises its error."""
    before = threading.excepthook

    def hook(arguments: Any) -> None:
        if not isinstance(arguments.thread, _AsyncWriterThread):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def lay_out(board: SummaryWriter, workers: int, *, window_metrics: bool) -> None:
    """Write the layout, without the charts for which the run has no values.

    Args:
        board: the run's.
        workers: number of workers; a single one has no category `Consensus`.
        window_metrics: whether the task measures its metric in every window.
    """
    board.add_custom_scalars(
        {
            category: {
                title: ["Multiline", tags]  # torch's word for several lines in one chart
                for title, tags in charts.items()
                if window_metrics or title != WINDOW_METRICS
            }
            for category, charts in LAYOUT.items()
            if workers > 1 or category != "Consensus"
        }
    )


def end(board: SummaryWriter) -> None:
    """Mark the run as finished."""
    _, _, finished = hparams({}, {})
    _add(board, finished)


def _experiment(config: Config) -> Any:
    """Return all columns of all runs, with types: TensorBoard takes those of a folder from any one of its runs."""
    infos = []
    for name, value in {**columns(config, workers=1), "model.hidden": 0, "parallel.sync_every": 0}.items():
        info = API.HParamInfo(name=name, type=API.DATA_TYPE_FLOAT64, differs=name in SHOWN)
        if isinstance(value, str):
            info.type = API.DATA_TYPE_STRING
            info.domain_discrete.extend(dict.fromkeys([*_choices(name), value]))
        infos.append(info)
    metrics = [API.MetricInfo(name=API.MetricName(tag=tag)) for tag in (BEST_VALIDATION, TEST)]
    experiment = API.Experiment(hparam_infos=infos, metric_infos=metrics)
    content = metadata.create_summary_metadata(PLUGIN.HParamsPluginData(experiment=experiment))
    return SUMMARY(value=[SUMMARY.Value(tag=metadata.EXPERIMENT_TAG, metadata=content)])


def _choices(name: str) -> list[str]:
    """Return the values that a key with a fixed set of values may have."""
    if name == "algorithm":
        return list(SCHEMES)
    choice = choice_of(Config.model_fields[name.partition(".")[0]])
    assert choice is not None
    return choice.names


def _add(board: SummaryWriter, *summaries: Any) -> None:
    assert board.file_writer is not None
    for summary in summaries:
        board.file_writer.add_summary(summary)
