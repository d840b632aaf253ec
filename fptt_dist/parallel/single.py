"""One process holds everything; nothing travels."""

from torch import Tensor

from fptt_dist.parallel.strategy import Strategy, all_finite


class Single(Strategy):
    """A single process."""

    def backward(self, loss: Tensor, *, last: bool) -> Tensor | None:
        """Differentiate; see `Strategy.backward`."""
        loss.backward()
        if not last:
            return None
        return all_finite(loss.detach(), [p.grad for p in self._parameters() if p.grad is not None])
