"""The callback of Hugging Face's Trainer."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fptt_dist.algorithm import FPTT


class TrainerCenter(TrainerCallback):
    """Let Hugging Face's Trainer evaluate, save and end with the slow weights W̄.

    The Trainer itself calls `optimizer.train()` before each training step and `optimizer.eval()` before each
    evaluation. With this callback the model holds W̄ after each optimizer step too, so that every checkpoint and the
    model after `train()` have W̄. W is in a checkpoint's `optimizer.pt`, from which training resumes exactly.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a Trainer without FPTT.

        Raises:
            RuntimeError: the optimizer is not FPTT.
        """
        _fptt(kwargs["optimizer"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show W̄."""
        _fptt(kwargs["optimizer"]).eval()


def _fptt(optimizer: Any) -> FPTT:
    """The optimizer within Accelerate's wrapper."""
    inner = optimizer
    while not isinstance(inner, FPTT):
        if not hasattr(inner, "optimizer"):
            raise RuntimeError(
                f"TrainerCenter needs an FPTT optimizer, the Trainer has {type(inner).__name__}: give the Trainer "
                "optimizer_cls_and_kwargs=(FPTT.over(torch.optim.AdamW, alpha=…), {'lr': …})"
            )
        inner = inner.optimizer
    return inner
