"""Every key of a configuration: its type, range, default and meaning. Defined here and nowhere else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.cells.lstm import LSTM
from fptt_dist.config.schema.layers import Model
from fptt_dist.config.schema.optimizers import Adam, Optimizer
from fptt_dist.config.schema.parallel import AutoParallel, Parallel
from fptt_dist.config.schema.paths import LocalPath
from fptt_dist.config.schema.schedules import AlphaSchedule, ConstantAlpha, ConstantLr, LrSchedule
from fptt_dist.config.schema.section import Conflict, Section, refuse
from fptt_dist.config.schema.tasks import AddingTask, ArraysTask, MeasuredTask, Task
from fptt_dist.config.schema.user_class import UserClass


class Fptt(Section):
    """The forward propagation through time algorithm."""

    alpha: float = Field(default=0.5, ge=0, description="strength of the regularizer, which ties weights to the center")
    beta: float = Field(default=0.5, gt=0, le=1, description="fraction of the center that each update replaces")
    windows: int | None = Field(
        default=None,
        ge=1,
        description="parameter updates per sequence K, null = as window_length says, or round(sqrt(sequence length))",
    )
    window_length: int | None = Field(
        default=None,
        ge=1,
        description="steps per window, in place of windows: K = ceil(sequence length / window_length), of task.length "
        "where task.length_std > 0",
    )
    window_remainder: Literal["balanced", "append"] = Field(
        default="balanced",
        description="steps left over where K does not divide the length: balanced over the windows, or one more, short "
        "window appended (the authors' code); where window_length does not divide it: K windows that differ by at most "
        "a step (balanced), or all of window_length steps but the last (append)",
    )
    dual_weight: float = Field(default=1.0, ge=0, description="factor of the dual in the regularizer's gradient")
    prox_weight: float = Field(
        default=1.0, ge=0, description="factor of the quadratic term in the regularizer's gradient"
    )
    update_rule: Literal["gradient", "proximal", "second_gradient"] = Field(
        default="gradient",
        description="gradient: the regularizer joins the gradient; proximal: solved after the step; second_gradient: "
        "the dual is a gradient at the new weights (the paper's Algorithm 2)",
    )
    metric: Literal["euclidean", "preconditioned"] = Field(
        default="euclidean",
        description="preconditioned: alpha is a fraction of one optimizer step (adam, adamw, rmsprop)",
    )
    clip_scope: Literal["total", "gradient"] = Field(
        default="total",
        description="what train.max_norm bounds: the gradient of loss + regularizer (total), or that of the loss",
    )
    reset_weights: bool = Field(default=False, description="weights <- center at the end of an epoch")
    reset_dual: bool = Field(default=False, description="dual <- 0 at the end of an epoch")
    schedule: AlphaSchedule = Field(default=ConstantAlpha(), description="how alpha changes during training")


class Train(Section):
    """Length of training and batch sizes. At least one of `max_batches` and `max_epochs` must be set."""

    batch_size: int = Field(default=128, ge=1, description="sequences per batch, over all workers together")
    max_batches: int | None = Field(default=None, ge=1, description="batches after which the run ends, null = no limit")
    max_epochs: int | None = Field(default=None, ge=1, description="epochs after which the run ends, null = no limit")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="validations in a row, none better than the best one, after which the run ends; null = no limit",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="sequences of one backward pass per worker (gradient accumulation), null = all of them",
    )
    max_norm: float | None = Field(
        default=1.0, gt=0, description="largest norm (see fptt.clip_scope), null = no clipping"
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="number format of forward and backward")
    compile_update: bool = Field(
        default=False,
        description="compile the update, on a GPU also the steps of cells that are stepped through: some seconds at "
        "the start, less time per update; needs a C++ compiler, or Triton on a GPU",
    )
    cuda_graph: bool = Field(
        default=False,
        description="capture the windows of a batch, forward, backward and update, in one CUDA graph; needs "
        "train.compile_update",
    )


class Evaluate(Section):
    """When to validate, and which parameters."""

    every_batches: int | None = Field(
        default=None, ge=1, description="batches between validations, null = at each epoch's end"
    )
    weights: Literal["auto", "center", "weights"] = Field(
        default="auto",
        description="center (the slow weights) or weights; auto: center where there is a regularizer, else weights; "
        "once optimizer.name=nt_asgd averages, that mean",
    )


class Checkpoint(Section):
    """When to save the state of a run."""

    every_batches: int | None = Field(
        default=None, ge=1, description="batches between checkpoints, null = at each epoch's end"
    )
    keep_last: int = Field(default=2, ge=1, description="checkpoints to keep, the newest ones")
    async_save: bool = Field(
        default=False, description="write while training continues; takes a copy of the state in the host's memory"
    )


class Logging(Section):
    """Settings of what a run records about itself."""

    every_batches: int = Field(default=10, ge=1, description="batches between records")
    tensorboard: bool = Field(default=True, description="write TensorBoard files too")
    wandb: str | None = Field(
        default=None,
        min_length=1,
        description="project of Weights & Biases to which records and result are written too, null = none; needs the "
        "package wandb",
    )
    profile: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        strict=False,
        description="first and last of the batches, counted from 1, of which torch's profiler writes a trace, such as "
        "[10, 12]; null = none",
    )

    @model_validator(mode="after")
    def _profile_has_an_order(self) -> Self:
        if self.profile is not None and self.profile[0] > self.profile[1]:
            first, last = self.profile
            text = (
                f"logging.profile=[{first}, {last}]: the first batch comes after the last: "
                f"type logging.profile=[{last}, {first}]"
            )
            refuse([Conflict(text, ("logging.profile",))])
        return self


class Data(Section):
    """Location of the data sets, the partition of their examples among the workers, and the input pipeline."""

    root: LocalPath = Field(default="data", min_length=1, description="folder of the data sets, e.g. of mnist/")
    partition: Literal["shuffled", "fixed", "by_label"] = Field(
        default="shuffled",
        description="partition of the examples. shuffled: anew every epoch; fixed: once, by the seed; by_label: once, "
        "by label (non-IID)",
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=64,
        description="data worker processes of each worker, which put its training batches together ahead of time; 0: "
        "put together when they are needed. The results are the same",
    )


class Run(Section):
    """Where a run writes."""

    dir: LocalPath | None = Field(
        default=None, min_length=1, description="folder of the run, null = runs/<task>-<algorithm>-seed<seed>"
    )


class Sections(Section):
    """Every section and key of a run; `Config` also checks that they fit together."""

    task: Task = Field(default=AddingTask(), description="the task to learn")
    model: Model = Field(default=LSTM(), description="the recurrent network")
    algorithm: Literal["fptt", "tbptt", "tbptt_accumulated", "bptt_aux", "bptt"] = Field(
        default="fptt", description="how to train"
    )
    fptt: Fptt = Field(
        default=Fptt(), description="the FPTT algorithm; its windows are those of the others too, except bptt"
    )
    optimizer: Optimizer = Field(default=Adam(), description="what turns gradients into updates")
    schedule: LrSchedule = Field(default=ConstantLr(), description="how the learning rate changes during training")
    train: Train = Field(default=Train(), description="length of training and batch sizes")
    evaluate: Evaluate = Field(default=Evaluate(), description="when to validate, and which parameters")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="when to save the state of the run")
    logging: Logging = Field(default=Logging(), description="what the run records about itself")
    parallel: Parallel = Field(default=AutoParallel(), description="how the work is split over processes")
    data: Data = Field(default=Data(), description="where data sets are, and how examples are partitioned")
    run: Run = Field(default=Run(), description="where the run writes")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of every random choice of the run")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to compute")
    resume: Literal["never", "auto"] = Field(
        default="never", description="auto: resume from the newest checkpoint in run.dir, if there is one"
    )

    @property
    def user_classes(self) -> list[UserClass]:
        """The classes in files of the user's: the task's, the layer's and the metrics'."""
        found = (getattr(section, "user_class", None) for section in (self.task, self.model))
        metrics = self.task.user_metrics if isinstance(self.task, MeasuredTask) else []
        return [*(each for each in found if each is not None), *metrics]

    def with_absolute_files(self) -> Self:
        """Return the same configuration, with the absolute paths of the user's files: workers may start elsewhere."""
        config = self.with_files({own.key: own.file.absolute() for own in self.user_classes})
        if isinstance(config.task, ArraysTask):
            config = config.model_copy(update={"task": config.task.with_absolute_files()})
        return config.model_copy(update={"model": config.model.with_absolute_source()})

    def with_files(self, files: Mapping[str, Path]) -> Self:
        """Return the same configuration, with other paths of the user's files, by the key that names each."""
        config = self
        for own in self.user_classes:
            if own.key in files:
                config = config._with_file(own, files[own.key])
        return config

    def _with_file(self, own: UserClass, file: Path) -> Self:
        section, _, key = own.key.partition(".")
        name, _, index = key.rstrip("]").partition("[")
        part, value = getattr(self, section), f"{file}:{own.name}"
        if index:
            listed = getattr(part, name)
            value = (*listed[: int(index)], value, *listed[int(index) + 1 :])
        return self.model_copy(update={section: part.model_copy(update={name: value})})

    @property
    def windows(self) -> int:
        """Parameter updates per sequence, K: 1 for bptt, else as fptt.windows or fptt.window_length says."""
        if self.algorithm == "bptt":
            return 1
        length = self.task.sequence_length
        if self.fptt.window_length is not None:
            return -(-length // self.fptt.window_length)
        return self.fptt.windows or max(1, round(length**0.5))

    @property
    def window_size(self) -> int | None:
        """Steps of every window but the last, with fptt.window_remainder=append; None: they differ by at most one."""
        if self.fptt.window_remainder == "balanced":
            return None
        given = None if self.algorithm == "bptt" else self.fptt.window_length
        return given or max(1, self.task.sequence_length // self.windows)

    @property
    def windows_run(self) -> int:
        """Windows of a sequence: K, or with fptt.window_remainder=append those of the remaining steps too."""
        size = self.window_size
        return self.windows if size is None else -(-self.task.sequence_length // size)
