"""Tasks to learn: one section per task."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.options import option_conflicts
from fptt_dist.config.schema.paths import LocalPath
from fptt_dist.config.schema.section import Conflict, Section, Variants, refuse
from fptt_dist.config.schema.user_class import ANY, GIVEN_CLASS, ClassPath, GivenClass, UserClass
from fptt_dist.config.values import show

PIXELS = {"mnist": 784, "fashion-mnist": 784, "cifar10": 1024}  # of an image
_Length = Annotated[int, Field(ge=2, description="steps of a sequence")]
_Examples = Annotated[
    int, Field(ge=1, description="training sequences per epoch (new ones every epoch, unless data.partition=fixed)")
]
_Validation = Annotated[int, Field(ge=1, description="sequences of the fixed validation set")]
_Test = Annotated[int, Field(ge=1, description="sequences of the fixed test set")]


class _OfLength(Section):
    """A task whose sequences have the length that a key says."""

    length: _Length = 200

    @property
    def sequence_length(self) -> int:
        """Steps of a sequence."""
        return self.length

    @property
    def length_text(self) -> str:
        """Keys that the number of steps follows from, for messages."""
        return f"task.length={self.length}"


class MeasuredTask(Section):
    """A task with labels or numbers, whose metrics are chosen."""

    metrics: tuple[LocalPath, ...] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description="metrics of validation and test, those that fit the targets: of classes accuracy, "
        "balanced_accuracy, macro_f1, auroc; of labels the same without balanced_accuracy; of numbers rmse, mae; of "
        "forecasts mase, too; PATH.py:CLASS of a torchmetrics.Metric anywhere; null = the first that fits",
    )
    monitor: str | None = Field(
        default=None,
        min_length=1,
        description="the one that decides best checkpoint, train.patience, plateaus and sweeps, null = the first; of "
        "PATH.py:CLASS it is CLASS",
    )

    @property
    def user_metrics(self) -> list[UserClass]:
        """The metrics that are classes of the user's."""
        listed = enumerate(self.metrics or ())
        return [UserClass.of(f"task.metrics[{n}]", each) for n, each in listed if ":" in each]


class AddingTask(_OfLength):
    """The adding problem: the sum of the two marked numbers of a sequence."""

    name: Literal["adding"] = Field(default="adding", description="the task")
    markers: Literal["halves", "anywhere"] = Field(
        default="halves",
        description="halves: one marker in each half, as in the paper; anywhere: two distinct positions",
    )
    examples: _Examples = 12800
    validation: _Validation = 2000
    test: _Test = 2000


class PixelsTask(Section):
    """Images read as sequences of pixels, one label each."""

    name: Literal["pixels"] = Field(default="pixels", description="the task")
    dataset: Literal["mnist", "fashion-mnist", "cifar10"] = Field(
        default="mnist", description="which images, in data.root; a pixel of cifar10 has three channels"
    )
    pixels_per_step: int = Field(
        default=1,
        ge=1,
        le=max(PIXELS.values()),
        description="pixels shown at each step, a divisor of 784 (cifar10: of 1024); 28 (32) is a row",
    )
    permutation: int | None = Field(
        default=None, ge=0, description="seed of the fixed permutation of the pixels, null = reading order"
    )
    validation: int = Field(default=5000, ge=1, description="training images held out for validation")
    examples: int | None = Field(
        default=None, ge=1, description="training images used, null = all that are not held out"
    )
    test: int | None = Field(default=None, ge=1, description="test images used, null = all")
    augmentation: bool = Field(
        default=False, description="shift training images by up to 2 pixels; cifar10: by up to 4, and mirror half"
    )
    target_estimate: Literal["uniform", "class_mean", "example"] = Field(
        default="uniform", description="Q of the terminal loss: 1/10, or the last epoch's mean by label, or by example"
    )
    loss_steps: Literal["last", "all"] = Field(
        default="last", description="steps of a window that the loss reads: the last one, or all (the paper)"
    )
    kl_reduction: Literal["sum", "mean"] = Field(
        default="sum", description="of the terminal loss over the classes: their sum (the paper), or mean (its code)"
    )

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        """Refuse steps that do not fill the image."""
        pixels = PIXELS[self.dataset]
        if pixels % self.pixels_per_step:
            near = min(
                (d for d in range(1, pixels + 1) if pixels % d == 0), key=lambda d: abs(d - self.pixels_per_step)
            )
            text = (
                f"task.pixels_per_step={self.pixels_per_step} does not divide an image's {pixels} pixels: "
                f"type a divisor such as task.pixels_per_step={near}"
            )
            refuse([Conflict(text, ("task.pixels_per_step",))])
        return self

    @property
    def sequence_length(self) -> int:
        """Steps of every sequence."""
        return PIXELS[self.dataset] // self.pixels_per_step

    @property
    def length_text(self) -> str:
        """Keys that the number of steps follows from, for messages."""
        return f"{PIXELS[self.dataset]} / task.pixels_per_step={self.pixels_per_step}"


class LanguageTask(_OfLength):
    """The next word or character of a text, whose streams carry the recurrent state from sequence to sequence."""

    name: Literal["language"] = Field(default="language", description="the task")
    text_dir: LocalPath | None = Field(
        default=None,
        min_length=1,
        description="folder with train.txt, valid.txt and test.txt, null = the Penn Treebank in data.root/ptb",
    )
    token_level: Literal["word", "character"] = Field(default="word", description="what a step reads and predicts")
    min_count: int = Field(
        default=2,
        ge=1,
        description="words (or characters) that train.txt of task.text_dir has less often are read as <unk>; the Penn "
        "Treebank has its own <unk>",
    )
    length: _Length = 70
    length_std: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the sequences' lengths; one in twenty is half as long, and a sequence's "
        "learning rate is in proportion to its length (Merity et al. 2018)",
    )
    train_tokens: int | None = Field(default=None, ge=2, description="training tokens used, null = all")
    eval_tokens: int | None = Field(default=None, ge=2, description="tokens of valid and of test used each, null = all")

    @model_validator(mode="after")
    def _counts_in_a_text_of_ones_own(self) -> Self:
        """Refuse a count that would have no effect."""
        if self.text_dir is None and self.min_count != 2:
            text = (
                f"task.min_count={self.min_count} has no effect on the Penn Treebank, which has its own <unk>: leave "
                "it out, or type task.text_dir=… for a text of your own"
            )
            refuse([Conflict(text, ("task.min_count", "task.text_dir"))])
        return self


class CopyingTask(Section):
    """The copy memory problem: say a few symbols again after a long silence."""

    name: Literal["copying"] = Field(default="copying", description="the task")
    delay: int = Field(default=100, ge=1, description="steps between the last symbol and the first recalled one")
    symbols: int = Field(default=10, ge=1, description="symbols to recall")
    alphabet: int = Field(default=8, ge=2, description="different symbols")
    examples: _Examples = 12800
    validation: _Validation = 1000
    test: _Test = 1000

    @property
    def sequence_length(self) -> int:
        """Steps of every sequence."""
        return self.delay + 2 * self.symbols

    @property
    def length_text(self) -> str:
        """Keys that the number of steps follows from, for messages."""
        return f"task.delay={self.delay} + 2 x task.symbols={self.symbols}"


class ArraysTask(MeasuredTask):
    """Series of one's own, from arrays or a table."""

    name: Literal["arrays"] = Field(default="arrays", description="the task")
    train: LocalPath = Field(
        min_length=1,
        description="training data: a .npz or .safetensors file, a folder with inputs.npy, a .csv or a .parquet file",
    )
    validation: LocalPath | None = Field(
        default=None, min_length=1, description="validation data, null = as a split of task.train says, or held out"
    )
    test: LocalPath | None = Field(
        default=None, min_length=1, description="test data, null = as a split of task.train says, or held out"
    )
    target: Literal["class", "labels", "value", "step_class", "step_value", "forecast"] = Field(
        default="class",
        description="class: one per series; labels: several per series, each 0 or 1; value: a number per series, or "
        "several; step_class, step_value: the same per step; forecast: the next task.horizon values at every step",
    )
    length: int = Field(ge=2, description="steps of the longest series; of a forecast, steps that it is made from")
    horizon: int = Field(default=1, ge=1, description="steps of a forecast")
    series_column: str | None = Field(
        default="series", min_length=1, description="of a table: which series a row is of, null = all are of one"
    )
    time_column: str | None = Field(
        default="time", min_length=1, description="of a table: order of a series' rows, null = that of the file"
    )
    target_columns: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description='of a table: the targets, null = "target"; of a forecast the channels that it is of, null = all '
        "(those of arrays are 0, 1, …)",
    )
    feature_columns: tuple[str, ...] | None = Field(
        default=None, strict=False, min_length=1, description="of a table: the channels, null = all other columns"
    )
    split_column: str | None = Field(
        default=None, min_length=1, description="of a table: train, validation or test of each series, null = none says"
    )
    validation_share: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="share of the series that is held out for validation where no file says which; of a forecast, of "
        "each series' steps, the last ones before the test's",
    )
    test_share: float = Field(default=0.15, gt=0, lt=1, description="the same for the test; of a forecast, the last")
    split_seed: int = Field(default=0, ge=0, description="seed of which series are held out; apart from seed")
    missing: Literal["refuse", "fill"] = Field(
        default="refuse",
        description="missing values (NaN, empty cells) of channels. fill: the last value is carried forward, and a "
        "channel more for each says where a value was there",
    )
    standardize: bool = Field(
        default=True, description="subtract mean, divide by standard deviation of the training examples"
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: the loss of a class counts in inverse proportion to its examples"
    )
    target_estimate: Literal["uniform", "class_mean", "example"] = Field(
        default="uniform",
        description="Q of the terminal loss (task.target=class): 1/C, or the last epoch's mean by label, or by example",
    )
    bucketing: bool = Field(
        default=True, description="put sequences of similar length into one batch, where lengths differ: less padding"
    )

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Self:
        """Refuse keys of another target, and shares that leave nothing to train on."""
        refuse([*self._of_another_target(), *self._nothing_left()])
        return self

    def _of_another_target(self) -> Iterator[Conflict]:
        effects = {
            "horizon": ("forecast",),
            "class_weights": ("class", "step_class"),
            "target_estimate": ("class",),
        }
        for name, targets in effects.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and self.target not in targets:
                text = (
                    f"task.{name}={value} has no effect with task.target={self.target}: leave it out, or type "
                    f"task.target={targets[0]}"
                )
                yield Conflict(text, (f"task.{name}", "task.target"))
        table = ("series_column", "time_column", "feature_columns", "split_column")
        for name in (*table, *(("target_columns",) if self.target != "forecast" else ())):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and not self.is_table:
                text = (
                    f"task.{name}={show(value)} has no effect on task.train={self.train}, which is no table: leave it "
                    "out, or type task.train=… for a .csv or .parquet file"
                )
                yield Conflict(text, (f"task.{name}", "task.train"))

    def _nothing_left(self) -> Iterator[Conflict]:
        held_out = self.validation_share * (self.validation is None) + self.test_share * (self.test is None)
        if held_out >= 1:
            text = (
                f"task.validation_share={self.validation_share} and task.test_share={self.test_share} leave nothing to "
                "train on: type smaller ones, such as 0.15"
            )
            yield Conflict(text, ("task.validation_share", "task.test_share"))

    @property
    def sequence_length(self) -> int:
        """Steps of the longest sequence."""
        return self.length

    @property
    def length_text(self) -> str:
        """Keys that the number of steps follows from, for messages."""
        return f"task.length={self.length}"

    def with_absolute_files(self) -> Self:
        """Return the same section, with the absolute paths of the data's files."""
        given = {part: getattr(self, part) for part in ("train", "validation", "test")}
        paths = {part: str(Path(file).absolute()) for part, file in given.items() if file is not None}
        return self.model_copy(update=paths)

    @property
    def is_table(self) -> bool:
        """True if the data are in a table with named columns."""
        return self.train.endswith((".csv", ".parquet"))


class UserTask(MeasuredTask):
    """A task of your own, or a Dataset: a class in a file (`docs/own-task.md`)."""

    name: ClassPath = Field(default=ANY, description="the task")
    length: int = Field(ge=1, description="steps of the longest sequence, from which the windows follow")
    options: dict[str, Any] = Field(
        default={},
        description="keyword arguments of the class, which is given seed (a Dataset: split) too: plain values",
    )
    target: Literal["class", "labels", "value", "step_class", "step_value"] | None = Field(
        default=None,
        description="kind of the targets of a Dataset, which then has task.metrics too; null = it is no Dataset but a "
        "Task",
    )

    @model_validator(mode="after")
    def _metrics_are_of_a_dataset(self) -> Self:
        """Refuse metrics of a Task, which has its own."""
        conflicts = []
        for name in ("metrics", "monitor"):
            value = getattr(self, name)
            if value is not None and self.target is None:
                text = (
                    f"task.{name}={show(value)} is for a Dataset, and a Task has a metric of its own: leave it out, or "
                    "type task.target=class (or labels, value, step_class, step_value) too"
                )
                conflicts.append(Conflict(text, (f"task.{name}", "task.target")))
        refuse(conflicts)
        return self

    @model_validator(mode="after")
    def _options_are_keyword_arguments(self) -> Self:
        """Refuse names that no argument can have, those given anyway, and values that no file could hold."""
        if self.target is None:
            taken = {"seed": f"the class is given the run's: type seed={show(self.options.get('seed'))}"}
        else:
            taken = {"split": "a Dataset is made for each split, train, validation and test: leave it out"}
        refuse([*option_conflicts("task", self.options, taken)])
        return self

    @property
    def user_class(self) -> UserClass:
        """The task's class."""
        return UserClass.of("task.name", self.name)

    @property
    def sequence_length(self) -> int:
        """Steps of the longest sequence."""
        return self.length

    @property
    def length_text(self) -> str:
        """Keys that the number of steps follows from, for messages."""
        return f"task.length={self.length}"


class GivenTask(Section):
    """A task that `fptt_dist.fit` was given as an object."""

    name: GivenClass = Field(default=GIVEN_CLASS, description="the task")
    length: int = Field(ge=1, description="steps of the longest sequence, as the object says")

    @property
    def sequence_length(self) -> int:
        """Steps of the longest sequence."""
        return self.length

    @property
    def length_text(self) -> str:
        """Keys that the number of steps follows from, for messages."""
        return f"task.length={self.length}"


Task = Annotated[
    AddingTask | PixelsTask | LanguageTask | CopyingTask | ArraysTask | UserTask | GivenTask, Variants("name")
]
