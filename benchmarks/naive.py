"""A plain transcription of FPTT, as a reader of the paper would write it, to measure ours against.

The penalty α/2 ‖W − W̄‖² − ⟨λ, W⟩ is part of the loss and differentiated with it; torch clips and steps; a loop over the
parameters updates λ and W̄. Nothing is fused and nothing runs over lists of tensors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.algorithm import detach, window_slices
from fptt_dist.tasks import Batch


class NaiveFPTT:
    """Trains a network on sequences with one label each, Q uniform.

    Args:
        network: `(x (S, B, I), state) → (y, state)`.
        windows: K.
        alpha: α.
        lr: Adam's.
        max_norm: bound of the gradient's norm.
    """

    def __init__(self, network: nn.Module, *, windows: int, alpha: float, lr: float, max_norm: float) -> None:
        self.network = network
        self.windows = windows
        self.alpha = alpha
        self.max_norm = max_norm
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, foreach=False)
        self.centers = [p.detach().clone() for p in network.parameters()]  # W̄
        self.duals = [torch.zeros_like(p) for p in network.parameters()]  # λ

    def run(self, batch: Batch) -> None:
        """Make K updates on one batch."""
        state = None
        for k, part in enumerate(window_slices(len(batch.inputs), self.windows), 1):
            self.optimizer.zero_grad()
            output, state = self.network(batch.inputs[part], detach(state))
            (self.loss(output[-1], batch.targets, k / self.windows) + self.penalty()).backward()
            self.update()

    def loss(self, logits: Tensor, labels: Tensor, beta: float) -> Tensor:
        """Return β CE(P̂, y) + (1 − β) (− Σ_c log P̂(c) / C), averaged over the batch."""
        log_probability = functional.log_softmax(logits, dim=-1)
        cross_entropy = functional.nll_loss(log_probability, labels)
        return beta * cross_entropy - (1.0 - beta) * log_probability.mean(-1).mean()

    def penalty(self) -> Tensor:
        """Return α/2 ‖W − W̄‖² − ⟨λ, W⟩."""
        total = torch.zeros((), device=self.centers[0].device)
        for p, center, dual in zip(self.network.parameters(), self.centers, self.duals, strict=True):
            total = total + 0.5 * self.alpha * torch.sum((p - center) ** 2) - torch.sum(dual * p)
        return total

    def update(self) -> None:
        """Clip, then Adam's step, λ ← λ − α (W − W̄), W̄ ← ½ (W̄ + W) − λ/(2α)."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm, foreach=False)
        self.optimizer.step()
        with torch.no_grad():
            for i, p in enumerate(self.network.parameters()):
                self.duals[i] = self.duals[i] - self.alpha * (p - self.centers[i])
                self.centers[i] = 0.5 * (self.centers[i] + p) - self.duals[i] / (2.0 * self.alpha)
