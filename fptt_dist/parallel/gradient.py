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

from fptt_dist.parallel.collectives import broadcast_from_first, equal_on_all_workers, sum_over_workers
from fptt_dist.parallel.strategy import OptimizerView, Strategy


class GradientAveraging(Strategy):
    """Average the gradients of each window over all workers, whose shares of the batch are equal.

    The flat float32 (or float64) buffer holds the gradients, then one number for each parameter (how many workers have
    a gradient for it: none steps it, or all do, and a missing one counts as 0), then the loss and the stop flag.
    """

    def attach(self, optimizer: OptimizerView) -> None:
        """Bring every worker to rank 0's weights and check that they are equal bit for bit.

        Raises:
            RuntimeError: they are not.
        """
        super().attach(optimizer)
        parameters = self._parameters()
        broadcast_from_first([p.detach() for p in parameters], name="weights")
        if not equal_on_all_workers(parameters, name="weights"):
            raise RuntimeError("the workers' weights differ after the broadcast from rank 0")
        size = sum(p.numel() for p in parameters) + len(parameters) + 2
        widest = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        self._buffer = torch.zeros(size, dtype=widest, device=parameters[0].device)
        self._loss: Tensor | None = None

    def backward(self, loss: Tensor, *, last: bool) -> Tensor | None:
        """Differentiate, and before an update average over the workers; see `Strategy.backward`."""
        loss.backward()
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if not last:
            return None
        parameters = self._parameters()
        gradients, presence, tail = self._fill(parameters)
        sum_over_workers(self._buffer, name="gradients")
        finite = torch.isfinite(self._buffer.abs().amax())
        torch._foreach_div_(gradients, float(self.world))
        for p, gradient, present in zip(parameters, gradients, presence.tolist(), strict=True):
            if present:
                p.grad = gradient.to(p.dtype, copy=True) if p.grad is None else p.grad.copy_(gradient)
        self._agreed_stop = tail[1]
        self._loss = None
        return finite

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the workers, in place."""
        return sum_over_workers(tensor, name="metrics")

    def stopping(self) -> bool:
        """Whether any worker had been asked to stop when the last gradients were sent."""
        return bool(self._agreed_stop.item() > 0)

    def _fill(self, parameters: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Write this worker's share into the buffer; views of it: gradients by parameter, presence, [loss, stop]."""
        sizes = [p.numel() for p in parameters]
        *parts, presence, tail = self._buffer.split([*sizes, len(parameters), 2])
        gradients = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
        for gradient, p in zip(gradients, parameters, strict=True):
            if p.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(p.grad)
        presence.copy_(torch.tensor([float(p.grad is not None) for p in parameters]))
        tail[0] = 0.0 if self._loss is None else self._loss
        tail[1] = float(self._stop)
        return gradients, presence, tail
