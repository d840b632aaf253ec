"""FPTT in Lightning: manual optimization, a learning-rate schedule, checkpoints that resume.

Type:

    pip install -c constraints.txt -e '.[examples]'
    python examples/lightning_module.py --folder runs/lightning
    python examples/lightning_module.py --folder runs/lightning --epochs 8 --resume runs/lightning/last.ckpt

It trains an LSTM on the adding task, 50 batches per epoch, writes `last.ckpt` after every epoch and prints the
validation error of the slow weights W̄ beside that of always answering the mean. The second command resumes where the
first ended, with W̄ and λ, and ends with the same weights as eight epochs in one go.

Four things to know:
- FPTT steps K times per batch, so `automatic_optimization = False`, and `trainer.global_step` counts updates, not
  batches: `max_steps` and `ModelCheckpoint(every_n_train_steps=…)` are in updates.
- `Trainer(gradient_clip_val=…)` is refused with manual optimization: `FPTT(max_norm=…)` clips.
- Lightning saves and restores W̄ and λ by itself; they are in the optimizer's state. It does not restore the generator
  of random numbers: the data of an epoch depend on its number alone here, so that a resumed run sees the same.
- `precision="bf16-mixed"` works as with any optimizer; `"bf16-true"` does not: FPTT keeps the weights in float32.

Effect of the regularizer here: little; `--alpha 0` learns as well. The K updates along each sequence do the work.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fptt_dist import FPTT, window_slices

STEPS, WINDOWS, BATCH, BATCHES = 100, 10, 64, 50


def adding(sequences: int, seed: int) -> TensorDataset:
    """Numbers and markers (B, T, 2), and the sum of the two marked numbers (B, 1)."""
    draw = torch.Generator().manual_seed(seed)
    numbers, marks = torch.rand(sequences, STEPS, generator=draw), torch.zeros(sequences, STEPS)
    first = torch.randint(STEPS // 2, (sequences, 1), generator=draw)
    second = torch.randint(STEPS // 2, STEPS, (sequences, 1), generator=draw)
    marks.scatter_(1, torch.cat([first, second], dim=1), 1.0)
    return TensorDataset(torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(1, keepdim=True))


class AddingModule(lightning.LightningModule):
    """An LSTM that reads a sequence in K windows and is updated after each."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.alpha = alpha
        self.lstm, self.readout = nn.LSTM(2, 64, batch_first=True), nn.Linear(64, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """K updates along the batch's sequences."""
        optimizer: Any = self.optimizers()
        x, y = batch
        state = None
        for k, part in enumerate(window_slices(STEPS, WINDOWS), 1):
            hidden, state = self.lstm(x[:, part], state)
            loss = k / WINDOWS * nn.functional.mse_loss(self.readout(hidden[:, -1]), y)
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            state = tuple(part_of_state.detach() for part_of_state in state)

    def on_train_epoch_end(self) -> None:
        """Manual optimization leaves the schedule to the module, too."""
        schedule: Any = self.lr_schedulers()
        schedule.step()

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """The error of W̄; the weights are back before Lightning writes its checkpoint."""
        x, y = batch
        fptt: Any = self.optimizers(use_pl_optimizer=False)  # as configured: Lightning wraps it for stepping alone
        with fptt.at_center():
            hidden, _ = self.lstm(x)
            self.log("error", nn.functional.mse_loss(self.readout(hidden[:, -1]), y))

    def configure_optimizers(self) -> Any:
        """FPTT around Adam; the schedule changes FPTT's learning rate like any optimizer's."""
        adam = torch.optim.Adam(self.parameters(), lr=1e-2)
        optimizer = FPTT(adam, alpha=self.alpha, metric="preconditioned", max_norm=1.0)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)}

    def train_dataloader(self) -> DataLoader:
        """New sequences every epoch (`reload_dataloaders_every_n_epochs=1`), drawn from the epoch's number."""
        return DataLoader(adding(BATCH * BATCHES, seed=1 + self.current_epoch), batch_size=BATCH)

    def val_dataloader(self) -> DataLoader:
        """The same 1000 sequences always."""
        return DataLoader(adding(1000, seed=0), batch_size=1000)


def main() -> None:
    """Train, and print the result."""
    parser = argparse.ArgumentParser(description="FPTT in Lightning, on the adding task")
    parser.add_argument("--folder", type=Path, default=Path("runs/lightning"), help="where last.ckpt is written")
    parser.add_argument("--epochs", type=int, default=6, help="of 50 batches each (default: 6)")
    parser.add_argument("--resume", type=Path, help="a checkpoint to resume from")
    parser.add_argument("--precision", default="32-true", help="Lightning's precision (default: 32-true)")
    parser.add_argument("--alpha", type=float, default=0.5, help="strength of the regularizer; 0: none (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(options.seed, verbose=False)
    module = AddingModule(options.alpha)
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator="auto",
        devices=1,
        precision=options.precision,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[ModelCheckpoint(options.folder, filename="last", enable_version_counter=False)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=options.resume)
    error, mean = float(trainer.callback_metrics["error"]), float(adding(1000, seed=0).tensors[1].var())
    print(f"validation error {error:.4f} after {trainer.global_step} updates, always predicting the mean: {mean:.4f}")


if __name__ == "__main__":
    main()
