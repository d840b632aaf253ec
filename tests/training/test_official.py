"""The preset `official` against what the authors' released code computes, written down here in float64."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fptt_dist.config import load
from fptt_dist.models import Network
from fptt_dist.training.trainer import Trainer
from tests.tasks.test_pixels import some_images, write_images
from tests.training.helpers import trainer_for

ALPHA, BETA, RATE, PARTS, CLASSES = 0.1, 0.5, 1e-3, 6, 10
STEPS = 49  # 6 windows of 8 steps, and one of the step left over


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for prefix, count in (("train", 40), ("t10k", 10)):
        write_images(folder / "mnist", prefix, some_images(count, count), (np.arange(count) % 10).astype(np.uint8))
    return folder


def official(root: Path, folder: Path) -> Trainer:
    """As the row of the paper, tiny, without the dropped outputs (chance is tested elsewhere)."""
    settings = {
        "task": {"pixels_per_step": 16, "examples": 32, "validation": 8},
        "model": {"hidden": 5, "output_dropout": 0.0},
        "fptt.windows": PARTS,
        "train": {"batch_size": 16, "max_epochs": 2},
        "logging.tensorboard": False,
        "data.root": str(root),
        "run.dir": str(folder),
        "device": "cpu",
    }
    return trainer_for(load("paper/smnist_lstm_fptt_k10", settings))


class Reference:
    """W, W̄ and λ of every parameter, and Adam's moments, moved as the released code moves them."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).double()
        self.weights = list(self.network.parameters())
        self.center = [w.detach().clone() for w in self.weights]
        self.dual = [torch.zeros_like(w) for w in self.weights]
        self.first = [torch.zeros_like(w) for w in self.weights]
        self.second = [torch.zeros_like(w) for w in self.weights]
        self.updates = 0

    def train(self, inputs: Tensor, labels: Tensor) -> None:
        state = None
        starts = range(0, STEPS, STEPS // PARTS)
        assert len(starts) == PARTS + 1
        for part, start in enumerate(starts, 1):
            output, state = self.network(inputs[start : start + STEPS // PARTS], state)
            state = tuple(s.detach() for s in state)
            log = output[-1].log_softmax(-1)
            nll = -log[torch.arange(len(labels)), labels].mean()
            oracle = (-log / CLASSES).mean()  # over the batch and over the classes
            loss = part / PARTS * nll + (1 - part / PARTS) * oracle
            self.step(list(torch.autograd.grad(loss, self.weights)))

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        self.updates += 1
        moved = [
            g - dual + ALPHA * (w - center)
            for g, w, center, dual in zip(gradients, self.weights, self.center, self.dual, strict=True)
        ]
        norm = sum(float(g.square().sum()) for g in moved) ** 0.5
        for i, w in enumerate(self.weights):
            g = moved[i] * min(1.0, 1.0 / (norm + 1e-6))
            self.first[i] = 0.9 * self.first[i] + 0.1 * g
            self.second[i] = 0.999 * self.second[i] + 0.001 * g**2
            m = self.first[i] / (1 - 0.9**self.updates)
            v = self.second[i] / (1 - 0.999**self.updates)
            w -= RATE * m / (v.sqrt() + 1e-8)
            self.dual[i] = self.dual[i] - ALPHA * (w - self.center[i])
            self.center[i] = (1 - BETA) * self.center[i] + BETA * w - BETA / ALPHA * self.dual[i]

    @torch.no_grad()
    def end_epoch(self) -> None:
        for w, center, dual in zip(self.weights, self.center, self.dual, strict=True):
            w.copy_(center)
            dual.zero_()


def test_it_moves_the_weights_as_the_released_code_does(root: Path, tmp_path: Path) -> None:
    trainer = official(root, tmp_path / "run")
    reference = Reference(trainer.network)
    start = [w.detach().clone() for w in reference.weights]

    class Nothing:
        def training(self, record: object) -> None: ...

    for epoch in range(2):
        for cursor in (0, 16):
            batch = trainer.task.train_batch(epoch, cursor, 16, slice(0, 16))
            reference.train(batch.inputs.double(), batch.targets)
            trainer._train_batch(Nothing())  # pyright: ignore[reportArgumentType]
        reference.end_epoch()
    assert trainer.state.position.updates == reference.updates == 2 * 2 * (PARTS + 1)
    for name, p, w, first in zip(
        *(
            [name for name, _ in trainer.network.named_parameters()],
            trainer.network.parameters(),
            reference.weights,
            start,
        ),
        strict=True,
    ):
        moved = float((w.detach() - first).abs().max())
        assert moved > 5e-3, name
        torch.testing.assert_close(p.detach().double(), w.detach(), rtol=0, atol=1e-3 * moved)
    centers = [trainer.optimizer.center(p).double() for p in trainer.network.parameters()]
    for center, p in zip(centers, trainer.network.parameters(), strict=True):
        assert torch.equal(center, p.detach().double())  # W <- W̄ at the epoch's end
    assert all(not trainer.optimizer.dual(p).any() for p in trainer.network.parameters())


def test_it_runs_as_many_updates_as_the_released_code(root: Path) -> None:
    """784 = 10 · 78 + 4 and 1024 = 10 · 102 + 4: eleven of them."""
    for name in ("smnist_lstm_fptt_k10", "pmnist_lstm_fptt_k10", "cifar_lstm_fptt_k10"):
        config = load(f"paper/{name}")
        assert (config.windows, config.windows_run) == (10, 11)
        assert config.task.sequence_length in (784, 1024)


def test_outputs_are_dropped_in_training_alone(root: Path, tmp_path: Path) -> None:
    trainer = official(root, tmp_path / "run")
    assert isinstance(trainer.network, Network)
    trainer.network.output_dropout = 0.5
    x = trainer.task.train_batch(0, 0, 16, slice(0, 16)).inputs
    trainer.network.eval()
    one, other = trainer.network(x)[0], trainer.network(x)[0]
    assert torch.equal(one, other)
    trainer.network.train()
    dropped = trainer.network(x)[0] == 0
    assert 0.2 < float(dropped.float().mean()) < 0.8
