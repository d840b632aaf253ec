"""The keys of a network that starts from trained weights, or of which parts are not trained."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.paths import LocalPath
from fptt_dist.config.schema.section import Conflict, Section, refuse

_Names = Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1)]


class Pretrained(Section):
    """Keys of every network."""

    init_from: LocalPath | None = Field(
        default=None,
        min_length=1,
        description="folder of a run whose weights this one starts with, as RUN, RUN:best or RUN:latest; null = drawn "
        "by the seed",
    )
    init_names: _Names = Field(
        default=None,
        description="parameters that are taken from model.init_from, by names or their beginnings, such as recurrent; "
        "null = all, which must be the same in both networks",
    )
    freeze: _Names = Field(
        default=None, description="parameters that are not trained, by names or their beginnings; null = none"
    )

    @model_validator(mode="after")
    def _names_are_of_a_run(self) -> Self:
        """Refuse names of parameters that are taken from nowhere."""
        if self.init_names is not None and self.init_from is None:
            text = (
                f"model.init_names=[{', '.join(self.init_names)}] has no effect without model.init_from: type the "
                "folder of a run, or leave it out"
            )
            refuse([Conflict(text, ("model.init_names", "model.init_from"))])
        return self

    @property
    def source(self) -> tuple[Path, Literal["best", "latest"]] | None:
        """The run that the weights come from, and which of its checkpoints; None where there is none."""
        if self.init_from is None:
            return None
        folder, _, which = self.init_from.rpartition(":")
        if folder and which in ("best", "latest"):
            return Path(folder), which
        return Path(self.init_from), "best"

    def with_absolute_source(self) -> Self:
        """Return the same section, with the absolute path of that run."""
        source = self.source
        if source is None:
            return self
        return self.model_copy(update={"init_from": f"{source[0].absolute()}:{source[1]}"})
