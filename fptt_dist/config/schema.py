"""Every key of a configuration: its type, range, default and meaning. Defined here and nowhere else."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.networks import LSTM, Model
from fptt_dist.config.optimizers import Adam, Optimizer
from fptt_dist.config.parallel import AutoParallel, Parallel
from fptt_dist.config.paths import LocalPath
from fptt_dist.config.rules import conflicts_of
from fptt_dist.config.schedules import AlphaSchedule, ConstantAlpha, ConstantLr, LrSchedule
from fptt_dist.config.section import Section, refuse
from fptt_dist.config.tasks import AddingTask, Task


class Fptt(Section):
    """The forward propagation through time algorithm."""

    alpha: float = Field(default=0.5, ge=0, description="strength of the pull to the slow variable (the center)")
    beta: float = Field(default=0.5, gt=0, le=1, description="how much of the center each update renews")
    windows: int | None = Field(
        default=None, ge=1, description="parameter updates per sequence K, null = round(sqrt(sequence length))"
    )
    remainder: Literal["spread", "extra"] = Field(
        default="spread",
        description="steps left over where K does not divide the length: spread over the windows, or one more, short "
        "window (the authors' code)",
    )
    dual_weight: float = Field(default=1.0, ge=0, description="factor of the dual in the force")
    prox_weight: float = Field(default=1.0, ge=0, description="factor of the quadratic term in the force")
    update: Literal["explicit", "prox", "algorithm2"] = Field(
        default="explicit",
        description="explicit: the force joins the gradient; prox: solved after the step; algorithm2: second gradient",
    )
    metric: Literal["euclidean", "preconditioned"] = Field(
        default="euclidean",
        description="preconditioned: alpha is a fraction of one optimizer step (adam, adamw, rmsprop)",
    )
    clip: Literal["total", "gradient"] = Field(
        default="total", description="what train.max_norm bounds: gradient + force (total), or the gradient alone"
    )
    reset_weights: bool = Field(default=False, description="weights <- center at the end of an epoch")
    reset_dual: bool = Field(default=False, description="dual <- 0 at the end of an epoch")
    schedule: AlphaSchedule = Field(default=ConstantAlpha(), description="how alpha changes during training")


class Train(Section):
    """How long to train, on how much at a time. At least one of `batches` and `epochs` must be set."""

    batch_size: int = Field(default=128, ge=1, description="sequences of a batch, over all processes together")
    batches: int | None = Field(default=None, ge=1, description="batches after which the run ends, null = no limit")
    epochs: int | None = Field(default=None, ge=1, description="epochs after which the run ends, null = no limit")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="sequences of one backward pass per process (gradient accumulation), null = all of them",
    )
    max_norm: float | None = Field(default=1.0, gt=0, description="largest norm (see fptt.clip), null = no clipping")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="number format of forward and backward")
    compile: bool = Field(
        default=False,
        description="compile the update, on a GPU also the steps of cells that are stepped through: some seconds at "
        "the start, less time an update; needs a C++ compiler, or Triton on a GPU",
    )
    graph: bool = Field(
        default=False,
        description="capture the windows of a batch, forward, backward and update, in one CUDA graph; needs "
        "train.compile",
    )


class Evaluate(Section):
    """When to validate, and which parameters."""

    every: int | None = Field(default=None, ge=1, description="batches between validations, null = at each epoch's end")
    weights: Literal["auto", "center", "weights"] = Field(
        default="auto",
        description="center (the slow variable) or weights; auto: center where there is a force, else weights; once "
        "optimizer.name=nt_asgd averages, that mean",
    )


class Checkpoint(Section):
    """When to save the state of a run."""

    every: int | None = Field(default=None, ge=1, description="batches between checkpoints, null = at each epoch's end")
    keep_last: int = Field(default=2, ge=1, description="checkpoints to keep, the newest ones")
    asynchronous: bool = Field(
        default=False, description="write while training goes on; takes a copy of the state in the host's memory"
    )


class Telemetry(Section):
    """What a run records about itself."""

    every: int = Field(default=10, ge=1, description="batches between records")
    tensorboard: bool = Field(default=True, description="write TensorBoard files too")


class Data(Section):
    """Where data sets are, and how their examples fall to the processes."""

    root: LocalPath = Field(default="data", min_length=1, description="folder of the data sets, e.g. of mnist/")
    shards: Literal["shuffled", "fixed", "by_label"] = Field(
        default="shuffled",
        description="shuffled: examples are dealt anew every epoch; fixed: once, by the seed; by_label: once, by label",
    )


class Run(Section):
    """Where a run writes."""

    dir: LocalPath | None = Field(
        default=None, min_length=1, description="folder of the run, null = runs/<task>-<algorithm>-seed<seed>"
    )


class Config(Section):
    """Everything that decides a run."""

    task: Task = Field(default=AddingTask(), description="what is learnt")
    model: Model = Field(default=LSTM(), description="the recurrent network")
    algorithm: Literal["fptt", "online", "tbptt", "bptt_aux", "bptt"] = Field(
        default="fptt", description="how to train"
    )
    fptt: Fptt = Field(default=Fptt(), description="the FPTT algorithm; windows holds for the others too, but for bptt")
    optimizer: Optimizer = Field(default=Adam(), description="what turns gradients into updates")
    schedule: LrSchedule = Field(default=ConstantLr(), description="how the learning rate changes during training")
    train: Train = Field(default=Train(), description="how long to train, on how much at a time")
    evaluate: Evaluate = Field(default=Evaluate(), description="when to validate, and which parameters")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="when to save the state of the run")
    telemetry: Telemetry = Field(default=Telemetry(), description="what the run records about itself")
    parallel: Parallel = Field(default=AutoParallel(), description="how the work is split over processes")
    data: Data = Field(default=Data(), description="where data sets are, and how examples fall to the processes")
    run: Run = Field(default=Run(), description="where the run writes")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of every random choice of the run")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to compute")
    resume: Literal["never", "auto"] = Field(
        default="never", description="auto: go on from the newest checkpoint in run.dir, if there is one"
    )

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        """Refuse values that are allowed one by one but not together."""
        refuse(conflicts_of(self))
        return self

    @property
    def windows(self) -> int:
        """Parameter updates per sequence, K: 1 for bptt, else fptt.windows or round(sqrt(sequence length))."""
        if self.algorithm == "bptt":
            return 1
        return self.fptt.windows or max(1, round(self.task.sequence_length**0.5))

    @property
    def windows_run(self) -> int:
        """Windows that a sequence is cut into: K, or with fptt.remainder=extra those for what is left over too."""
        if self.fptt.remainder == "spread":
            return self.windows
        return -(-self.task.sequence_length // (self.task.sequence_length // self.windows))
