"""FPTT in Lightning: W̄ is validated and saved, W is trained, and a run resumes exactly."""

import logging
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fptt_dist import FPTT, window_slices
from fptt_dist.integrations import LightningCenter
from tests.clients.problem import (
    BATCH,
    BATCHES,
    RATE,
    STEPS,
    WINDOWS,
    FPTTAdam,
    Plain,
    assert_equal,
    mse,
    network,
    sequences,
)

pytestmark = [
    pytest.mark.clients,
    pytest.mark.slow,
    # Lightning's own: where SLURM is installed, of torch's pytree, of few workers, and where a run resumes.
    pytest.mark.filterwarnings(
        "ignore:The `srun` command is available",
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated",
        "ignore:The '.*_dataloader' does not have many workers",
        "ignore:The number of training batches",
        "ignore:Checkpoint directory",
        "ignore:The dirpath has changed",
        "ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps",
    ),
]
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Automatic(lightning.LightningModule):
    """One update per batch, which is a window."""

    windows = 1

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.shown: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Any:
        x, y = batch
        return mse(self.network(x)[0], y)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        x, y = batch
        self.shown.append(mse(self.network(x)[0], y).item())

    def configure_optimizers(self) -> Any:
        return FPTTAdam(self.parameters(), lr=RATE)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*sequences()), batch_size=BATCH)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*sequences(seed=1)), batch_size=BATCHES * BATCH)


class Manual(Automatic):
    """Updates after each window of a batch."""

    windows = WINDOWS

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer: Any = self.optimizers()
        x, y = batch
        state = None
        for part in window_slices(STEPS, WINDOWS):
            prediction, after = self.network(x[:, part], state)
            optimizer.zero_grad()
            self.manual_backward(mse(prediction, y[:, part]))
            optimizer.step()
            state = after.detach()


def trainer(folder: Path, epochs: int, every: int) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[
            LightningCenter(),
            ModelCheckpoint(folder / "all", filename="{epoch}", save_top_k=-1),
            ModelCheckpoint(
                folder / "weights", "{step}", save_top_k=-1, save_weights_only=True, every_n_train_steps=every
            ),
        ],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_the_center_is_validated_and_saved_and_a_run_resumes_exactly(kind: type[Automatic], tmp_path: Path) -> None:
    module = kind()
    within = kind.windows * (BATCHES - 2)
    whole = trainer(tmp_path / "whole", 2, within)
    whole.fit(module)
    plain = Plain(kind.windows).epochs()
    first = torch.load(tmp_path / "whole" / "all" / "epoch=0.ckpt", weights_only=True)
    assert_equal(first["state_dict"], plain.center, "network.")
    errors = [plain.validation()]
    plain.epochs()
    errors.append(plain.validation())
    assert module.shown == errors
    assert_equal(dict(module.named_parameters()), plain.center, "network.")  # after fit

    # In the middle of an epoch, weights alone.
    weights = torch.load(tmp_path / "whole" / "weights" / f"step={within}.ckpt", weights_only=True)
    assert_equal(weights["state_dict"], Plain(kind.windows).batches(range(BATCHES - 2)).center, "network.")

    again = kind()
    resumed = trainer(tmp_path / "resumed", 2, within)
    resumed.fit(again, ckpt_path=tmp_path / "whole" / "all" / "epoch=0.ckpt")
    assert again.shown == errors[1:]
    optimizer = resumed.optimizers[0]
    assert isinstance(optimizer, FPTT)
    assert_equal(dict(again.named_parameters()), plain.center, "network.")
    optimizer.train()
    assert_equal(dict(again.named_parameters()), plain.weights, "network.")


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    class Other(Automatic):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    with pytest.raises(RuntimeError, match=r"LightningCenter needs an FPTT optimizer.* gave: SGD"):
        trainer(tmp_path, 1, 1).fit(Other())


@pytest.mark.filterwarnings("ignore")  # jsonargparse's own
def test_the_command_line_constructs_it(tmp_path: Path) -> None:
    class Module(Automatic):
        configure_optimizers = lightning.LightningModule.configure_optimizers

    words = ["fit", "--optimizer=tests.clients.problem.FPTTAdam", f"--optimizer.lr={RATE}", "--trainer.max_epochs=1"]
    words += ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    words += ["--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0"]
    words += ["--trainer.callbacks=fptt_dist.integrations.LightningCenter", f"--trainer.default_root_dir={tmp_path}"]
    with patch.object(sys, "argv", ["program", *words]):
        client = LightningCLI(Module, seed_everything_default=False)
    assert_equal(dict(client.model.named_parameters()), Plain(1).epochs().center, "network.")
