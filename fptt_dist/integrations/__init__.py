"""Callbacks that let other frameworks evaluate and save the slow weights W̄; each needs its framework."""

from typing import TYPE_CHECKING

from fptt_dist.lazy import lazily

__all__ = ["LightningCenter", "TrainerCenter"]

if TYPE_CHECKING:
    from fptt_dist.integrations.lightning_callback import LightningCenter
    from fptt_dist.integrations.trainer_callback import TrainerCenter
else:
    # Whoever uses one framework need not have the other.
    __getattr__, __dir__ = lazily(
        __name__, {"LightningCenter": "lightning_callback", "TrainerCenter": "trainer_callback"}
    )
