"""Gradient averaging: every worker holds the whole model, and each window's mean gradient travels.

    worker 0   W  W̄  u  moments        g₀ ─┐
    worker 1   W  W̄  u  moments        g₁ ─┼─ one flat all-reduce a window ─→ mean g ─→ the same update everywhere
    worker 2   W  W̄  u  moments        g₂ ─┘

W, W̄ and u are the same function of the same steps on every worker, so they stay equal without being sent. It equals one
worker with the whole batch up to rounding. A recurrent layer's gradients become ready only when the backward pass ends,
so there is nothing to overlap with and one flat buffer serves.
"""

import torch
from torch import Tensor

from fptt_dist.parallel.collectives import Communicator
from fptt_dist.parallel.finite import all_finite
from fptt_dist.parallel.strategy import OptimizerView, Plan, Strategy


class GradientAveraging(Strategy):
    """Average the gradients of each window over the workers, weighted by their shares of the batch.

    The flat float32 (or float64) buffer holds the gradients, then one number for each parameter (how many workers have
    a gradient for it: none steps it, or all do, and a missing one counts as 0), then the loss and the stop flag.

    Args:
        everyone: all workers that average.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
    """

    def __init__(self, everyone: Communicator, weight: float) -> None:
        super().__init__(everyone)
        # 1 for equal shares, so that nothing is rounded before the sum
        self._relative_weight = weight * everyone.world

    def attach(self, optimizer: OptimizerView) -> None:
        """See `Strategy.attach`."""
        super().attach(optimizer)
        parameters = self._parameters()
        sizes = [p.numel() for p in parameters]
        widest = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        device = parameters[0].device
        self._buffer = torch.zeros(sum(sizes) + len(parameters) + 2, dtype=widest, device=device)
        *parts, self._presence, self._tail = self._buffer.split([*sizes, len(parameters), 2])
        self._gradients = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
        self._loss = torch.zeros((), dtype=widest, device=device)
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._agreed_stop = torch.zeros((), dtype=widest, device=device)
        self._asked = torch.zeros((), dtype=widest, device=device)  # to stop; on the device, for who captures a batch

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate, and before an update average over the workers; see `Strategy.backward`."""
        loss.backward()
        self._loss += loss.detach()
        if not last:
            return
        self._look(self._loss)
        parameters = self._parameters()
        self._fill(parameters)
        self.everyone.sum(self._buffer, name="gradients")
        self._finite &= all_finite(self._buffer)
        torch._foreach_div_(self._gradients, float(self.world))
        if any(p.grad is None for p in parameters):  # only then does it matter here what the others have
            for p, present in zip(parameters, self._presence.tolist(), strict=True):
                if present and p.grad is None:
                    p.grad = torch.empty_like(p)
        views, gradients = self._present(parameters)
        if gradients:
            torch._foreach_copy_(gradients, views)
        self._agreed_stop.copy_(self._tail[1])
        self._loss.zero_()

    def healthy(self) -> bool:
        """Whether all losses and gradients, and their sums, were finite."""
        return bool(self._finite)

    def request_stop(self) -> None:
        """See `Strategy.request_stop`."""
        super().request_stop()
        self._asked.fill_(1.0)

    def stopping(self) -> bool:
        """Whether any worker had been asked to stop when the last gradients were sent."""
        return bool(self._agreed_stop > 0)

    def plan(self, updates: int) -> Plan:
        """One buffer an update."""
        if self.world == 1:
            return super().plan(updates)
        size = self._buffer.numel() * self._buffer.element_size()
        return Plan(float(updates), float(updates * size), size, "the gradients, at every update")

    def _present(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the buffer, and the gradients, of the parameters that have one."""
        pairs = [(view, p.grad) for view, p in zip(self._gradients, parameters, strict=True) if p.grad is not None]
        return [view for view, _ in pairs], [gradient for _, gradient in pairs]

    @torch.no_grad()
    def _fill(self, parameters: list[Tensor]) -> None:
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
        self._tail[0] = self._loss
        self._tail[1] = self._asked
