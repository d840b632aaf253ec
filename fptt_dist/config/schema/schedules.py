"""Schedules of the learning rate and of alpha, the strength of the regularizer."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.section import Conflict, Section, Variants, refuse


class ConstantAlpha(Section):
    """alpha stays fptt.alpha."""

    name: Literal["constant"] = Field(default="constant", description="how alpha changes during training")


class LinearAlpha(Section):
    """alpha goes along a line from `start` to fptt.alpha."""

    name: Literal["linear"] = Field(default="linear", description="how alpha changes during training")
    start: float = Field(default=0.0, ge=0, description="alpha at the first batch; ends at fptt.alpha")


class CosineAlpha(Section):
    """alpha goes along half a cosine from `start` to fptt.alpha."""

    name: Literal["cosine"] = Field(default="cosine", description="how alpha changes during training")
    start: float = Field(default=0.0, ge=0, description="alpha at the first batch; ends at fptt.alpha")


class InverseLrAlpha(Section):
    """alpha grows as the learning rate falls: fptt.alpha * (first learning rate) / (learning rate)."""

    name: Literal["inverse_lr"] = Field(default="inverse_lr", description="how alpha changes during training")
    maximum: float | None = Field(default=None, gt=0, description="largest alpha, null = no limit")


AlphaSchedule = Annotated[ConstantAlpha | LinearAlpha | CosineAlpha | InverseLrAlpha, Variants("name")]


class ConstantLr(Section):
    """The learning rate stays optimizer.lr."""

    name: Literal["constant"] = Field(default="constant", description="how the learning rate changes during training")


class StepLr(Section):
    """The learning rate is multiplied by `factor` at each milestone."""

    name: Literal["step"] = Field(default="step", description="how the learning rate changes during training")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        strict=False, min_length=1, description="epochs after which the learning rate falls, increasing"
    )
    factor: float = Field(default=0.1, gt=0, lt=1, description="multiplies the learning rate at a milestone")

    @model_validator(mode="after")
    def _milestones_increase(self) -> Self:
        """Refuse milestones out of order or given twice."""
        if any(first >= second for first, second in pairwise(self.milestones)):
            text = (
                f"schedule.milestones={list(self.milestones)} must increase: "
                f"type schedule.milestones={sorted(set(self.milestones))}"
            )
            refuse([Conflict(text, ("schedule.milestones",))])
        return self


class CosineLr(Section):
    """The learning rate rises over `warmup_batches`, then falls along half a cosine until the end of the run."""

    name: Literal["cosine"] = Field(default="cosine", description="how the learning rate changes during training")
    warmup_batches: int = Field(default=0, ge=0, description="batches of a linear rise from 0 to optimizer.lr")
    final_lr_ratio: float = Field(
        default=0.0, ge=0, le=1, description="fraction of optimizer.lr reached at the end of the run"
    )


class PlateauLr(Section):
    """The learning rate is multiplied by `factor` when the validation loss stops falling."""

    name: Literal["plateau"] = Field(default="plateau", description="how the learning rate changes during training")
    factor: float = Field(default=0.25, gt=0, lt=1, description="multiplies the learning rate on a plateau")
    patience: int = Field(default=0, ge=0, description="epochs without progress before the learning rate falls")


LrSchedule = Annotated[ConstantLr | StepLr | CosineLr | PlateauLr, Variants("name")]
