"""Keys of the r-LSTM."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class ReconstructingLSTM(OneStack):
    """An LSTM that also learns to reconstruct its inputs from its state (r-LSTM, Trinh et al. 2018)."""

    layer: Literal["rlstm"] = Field(default="rlstm", description=LAYER)
    reconstruction: float = Field(default=1.0, ge=0, description="factor of the reconstruction's mean square error")
    reconstruction_steps: int = Field(default=16, ge=1, description="inputs that are reconstructed from a state")
