"""Gradient averaging: every worker holds the whole model, and the gradients are all-reduced after each window.

    worker 0   W  W̄  u  optimizer state   g₀ ─┐
    worker 1   W  W̄  u  optimizer state   g₁ ─┼─ one flat all-reduce per window ─→ mean g ─→ the same update everywhere
    worker 2   W  W̄  u  optimizer state   g₂ ─┘

W, W̄ and u are the same function of the same steps on every worker, so they stay equal without being sent. The result
equals that of one worker with the whole batch, up to rounding. A recurrent layer's gradients become ready only when the
backward pass ends, so there is nothing to overlap with and one flat buffer serves.
"""

import torch
from torch import Tensor

from fptt_dist.parallel.comm.comm_estimate import NOTHING, CommEstimate
from fptt_dist.parallel.comm.communicator import Communicator
from fptt_dist.parallel.control import Control
from fptt_dist.parallel.nan_check import all_finite
from fptt_dist.parallel.optimizer_view import OptimizerView
from fptt_dist.parallel.placement.placement import Placement
from fptt_dist.parallel.sync.sync import Sync


class GradientSync(Sync):
    """Average the gradients of each window over the workers, weighted by their shares of the batch.

    The flat float32 (or float64) buffer holds the gradients, then one number for each parameter (how many workers have
    a gradient for it: none updates it, or all do, and a missing one counts as 0), then the loss and the stop flag.

    Args:
        workers: those that average.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
    """

    def __init__(self, workers: Communicator, weight: float) -> None:
        self.workers = workers
        # 1 for equal shares, so that nothing is rounded before the sum
        self._relative_weight = weight * workers.world

    def attach(self, placement: Placement, optimizer: OptimizerView, control: Control) -> None:
        """See `Sync.attach`."""
        super().attach(placement, optimizer, control)
        parameters = placement.stepped()
        sizes = [p.numel() for p in parameters]
        widest = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        self._buffer = torch.zeros(sum(sizes) + len(parameters) + 2, dtype=widest, device=parameters[0].device)
        *parts, self._presence, self._tail = self._buffer.split([*sizes, len(parameters), 2])
        self._gradients = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def before_update(self, loss: Tensor) -> None:
        """Average the gradients over the workers, and learn their flags."""
        parameters = self.placement.stepped()
        self._fill(parameters, loss)
        self.workers.all_reduce(self._buffer, name="gradients")
        self.control.learn(finite=all_finite(self._buffer), stop=self._tail[1])
        torch._foreach_div_(self._gradients, float(self.workers.world))
        if any(p.grad is None for p in parameters):  # only then does it matter here what the others have
            for p, present in zip(parameters, self._presence.tolist(), strict=True):
                if present and p.grad is None:
                    p.grad = torch.empty_like(p)
        views, gradients = self._present(parameters)
        if gradients:
            torch._foreach_copy_(gradients, views)

    def share_flags(self) -> None:
        """See `Sync.share_flags`; each update has shared them."""
        self.control.publish(self.control.finite(), bool(self.control.stop > 0))

    def communicators(self) -> list[Communicator]:
        """See `Sync.communicators`."""
        return [self.workers]

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate one buffer per update."""
        if self.workers.world == 1:
            return NOTHING
        size = self._buffer.numel() * self._buffer.element_size()
        return CommEstimate(float(updates), float(updates * size), size, "the gradients, at every update")

    def _present(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return views of the buffer, and the gradients, of the parameters that have a gradient."""
        pairs = [(view, p.grad) for view, p in zip(self._gradients, parameters, strict=True) if p.grad is not None]
        return [view for view, _ in pairs], [gradient for _, gradient in pairs]

    @torch.no_grad()
    def _fill(self, parameters: list[Tensor], loss: Tensor) -> None:
        """Write this worker's weighted share into the buffer."""
        views, gradients = self._present(parameters)
        if len(gradients) < len(parameters):
            self._buffer.zero_()
        if gradients:
            torch._foreach_copy_(views, gradients)
        if self._relative_weight != 1.0:
            torch._foreach_mul_(self._gradients, self._relative_weight)
        if len(gradients) < len(parameters):
            self._presence.copy_(torch.tensor([float(p.grad is not None) for p in parameters]))
        else:
            self._presence.fill_(1.0)
        self._tail[0] = loss
        self._tail[1] = self.control.requested
