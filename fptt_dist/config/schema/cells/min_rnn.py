"""Keys of minGRU and minLSTM."""

from typing import Literal

from pydantic import Field

from fptt_dist.config.schema.models import LAYER, OneStack


class MinGRU(OneStack):
    """A GRU whose gate does not see the state, so that a window is one parallel scan (Feng et al. 2024)."""

    layer: Literal["mingru"] = Field(default="mingru", description=LAYER)


class MinLSTM(OneStack):
    """An LSTM whose gates do not see the state, so that a window is one parallel scan (Feng et al. 2024)."""

    layer: Literal["minlstm"] = Field(default="minlstm", description=LAYER)
