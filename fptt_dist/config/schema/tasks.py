"""Tasks to learn: one section per task."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.paths import LocalPath
from fptt_dist.config.schema.section import Conflict, Section, Variants, refuse

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


Task = Annotated[AddingTask | PixelsTask | LanguageTask | CopyingTask, Variants("name")]
