"""What can be learnt: one section a task."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.section import Conflict, Section, Variants, refuse

PIXELS = 784  # of an image of MNIST and Fashion-MNIST


class AddingTask(Section):
    """The adding problem: the sum of the two marked numbers of a sequence."""

    name: Literal["adding"] = Field(default="adding", description="the task")
    length: int = Field(default=200, ge=2, description="steps of a sequence")
    markers: Literal["halves", "anywhere"] = Field(
        default="halves",
        description="halves: one marker in each half, as in the paper; anywhere: two distinct positions",
    )
    examples: int = Field(
        default=12800, ge=1, description="training sequences an epoch (new ones every epoch, unless data.shards=fixed)"
    )
    validation: int = Field(default=2000, ge=1, description="sequences of the fixed validation set")
    test: int = Field(default=2000, ge=1, description="sequences of the fixed test set")

    @property
    def sequence_length(self) -> int:
        """Steps of every sequence."""
        return self.length

    @property
    def length_text(self) -> str:
        """What the number of steps follows from, for messages."""
        return f"task.length={self.length}"


class PixelsTask(Section):
    """Images read as sequences of pixels, one label each."""

    name: Literal["pixels"] = Field(default="pixels", description="the task")
    dataset: Literal["mnist", "fashion-mnist"] = Field(default="mnist", description="which images, in data.root")
    pixels_per_step: int = Field(
        default=1, ge=1, le=PIXELS, description="pixels shown at each step, a divisor of 784; 28 is a row"
    )
    permutation: int | None = Field(
        default=None, ge=0, description="seed of the fixed permutation of the pixels, null = reading order"
    )
    validation: int = Field(default=5000, ge=1, description="training images held out for validation")
    examples: int | None = Field(
        default=None, ge=1, description="training images used, null = all that are not held out"
    )
    estimate: Literal["uniform", "class_mean", "example"] = Field(
        default="uniform", description="Q of the terminal loss: 1/10, or the last epoch's mean by label, or by example"
    )
    reads: Literal["last", "every"] = Field(
        default="last", description="steps of a window that the loss reads: its last one, or every one (the paper)"
    )

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        """Refuse steps that do not fill the image."""
        if PIXELS % self.pixels_per_step:
            near = min(
                (d for d in range(1, PIXELS + 1) if PIXELS % d == 0), key=lambda d: abs(d - self.pixels_per_step)
            )
            text = (
                f"task.pixels_per_step={self.pixels_per_step} does not divide an image's {PIXELS} pixels: "
                f"type a divisor such as task.pixels_per_step={near}"
            )
            refuse([Conflict(text, ("task.pixels_per_step",))])
        return self

    @property
    def sequence_length(self) -> int:
        """Steps of every sequence."""
        return PIXELS // self.pixels_per_step

    @property
    def length_text(self) -> str:
        """What the number of steps follows from, for messages."""
        return f"784 / task.pixels_per_step={self.pixels_per_step}"


class CopyingTask(Section):
    """The copy memory problem: say a few symbols again after a long silence."""

    name: Literal["copying"] = Field(default="copying", description="the task")
    delay: int = Field(default=100, ge=1, description="steps between the last symbol and the first recalled one")
    symbols: int = Field(default=10, ge=1, description="symbols to recall")
    alphabet: int = Field(default=8, ge=2, description="different symbols")
    examples: int = Field(
        default=12800, ge=1, description="training sequences an epoch (new ones every epoch, unless data.shards=fixed)"
    )
    validation: int = Field(default=1000, ge=1, description="sequences of the fixed validation set")
    test: int = Field(default=1000, ge=1, description="sequences of the fixed test set")

    @property
    def sequence_length(self) -> int:
        """Steps of every sequence."""
        return self.delay + 2 * self.symbols

    @property
    def length_text(self) -> str:
        """What the number of steps follows from, for messages."""
        return f"task.delay={self.delay} + 2 x task.symbols={self.symbols}"


Task = Annotated[AddingTask | PixelsTask | CopyingTask, Variants("name")]
