"""Lightning's callback."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fptt_dist.algorithm import FPTT


class LightningCenter(Callback):
    """Let Lightning validate, save and end with the slow weights W̄; for automatic and manual optimization.

    Within a training batch the module holds W, between batches W̄. So validation, every checkpoint (also those with
    weights only) and the module after `fit` have W̄. W is in the optimizer's part of a checkpoint, from which `fit`
    resumes exactly.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module that is trained without FPTT.

        Raises:
            RuntimeError: no optimizer is FPTT.
        """
        if not _optimizers(trainer):
            kinds = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none"
            raise RuntimeError(f"LightningCenter needs an FPTT optimizer, configure_optimizers() gave: {kinds}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Train W."""
        for optimizer in _optimizers(trainer):
            optimizer.train()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show W̄; Lightning calls its checkpoint callbacks after all others."""
        for optimizer in _optimizers(trainer):
            optimizer.eval()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Show W̄, which may be saved now."""
        for optimizer in _optimizers(trainer):
            optimizer.eval()


def _optimizers(trainer: Trainer) -> list[FPTT]:
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, FPTT)]
