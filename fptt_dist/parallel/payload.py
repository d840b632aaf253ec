"""What travels at an agreement: one flat buffer, averaged over the workers in one collective.

    fp32      the buffer holds w x                 mean = Σ / R          w = R n_r / Σ n, 1 for equal shares
    bf16      the buffer holds w (x − x̂) in bf16    mean = x̂ + Σ / R      x̂ the last agreed point, in full precision

Raw bf16 weights would lose every update smaller than 1/256 of a weight; differences lose 1/256 of an update.
"""

import torch
from torch import Tensor

from fptt_dist.parallel.collectives import Communicator, Pending


class Payload:
    """A preallocated buffer for vectors and, behind them, a few numbers that ride along.

    Args:
        communicator: the workers that agree.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
        compressed: whether bf16 differences travel.
        template: tensors of the shapes and types of the largest set of vectors.
        numbers: how many numbers ride along.
        name: of the collective.
    """

    def __init__(
        self,
        communicator: Communicator,
        weight: float,
        *,
        compressed: bool,
        template: list[Tensor],
        numbers: int,
        name: str = "agreement",
    ) -> None:
        self.name = name
        self.communicator = communicator
        self.compressed = compressed
        self._relative_weight = weight * communicator.world
        full = torch.float64 if any(t.dtype == torch.float64 for t in template) else torch.float32
        dtype = torch.bfloat16 if compressed else full
        size = sum(t.numel() for t in template) + numbers
        self.buffer = torch.zeros(size, dtype=dtype, device=template[0].device)
        self._shapes: list[torch.Size] = []
        self._references: list[Tensor] = []
        self._pending: Pending | None = None

    @torch.no_grad()
    def start(self, vectors: list[Tensor], references: list[Tensor], numbers: Tensor) -> None:
        """Send `vectors` and `numbers` (1-dim) off.

        Args:
            vectors: any shapes.
            references: x̂ for each vector, equal on all workers; read only if compressed, and again by `finish`.
            numbers: what rides along.
        """
        self._shapes = [v.shape for v in vectors]
        self._references = references
        parts, tail = self._views(len(numbers))
        moving = torch._foreach_sub(vectors, references) if self.compressed and vectors else vectors
        if self._relative_weight != 1.0 and vectors:
            moving = torch._foreach_mul(moving, self._relative_weight)
        if vectors:
            torch._foreach_copy_(parts, moving)
        tail.copy_(numbers * self._relative_weight)
        self._pending = self.communicator.start_sum(self._filled, name=self.name)

    def wait(self) -> None:
        """Return when the sums are there."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    @torch.no_grad()
    def finish(self, numbers: int) -> tuple[list[Tensor], Tensor]:
        """The mean of each vector (views of the buffer, or new tensors if compressed), and of the numbers (float64)."""
        self.wait()
        parts, tail = self._views(numbers)
        world = float(self.communicator.world)
        riding = tail.double() / world
        if self.compressed:
            return [x + part.to(x.dtype).div_(world) for x, part in zip(self._references, parts, strict=True)], riding
        if parts:
            torch._foreach_div_(parts, world)
        return parts, riding

    def finite(self) -> bool:
        """Whether all sums are finite: NaN and infinity on one worker survive a sum."""
        return bool(torch.isfinite(self._filled.abs().amax()))

    def state(self) -> dict[str, Tensor]:
        """The sums that wait to be applied."""
        return {"buffer": self._filled.clone()}

    def load(self, state: dict[str, Tensor], like: list[Tensor], references: list[Tensor]) -> None:
        """Bring back what `state` gave, for vectors shaped `like`."""
        self._shapes = [v.shape for v in like]
        self._references = references
        self._filled = self.buffer[: len(state["buffer"])]
        self._filled.copy_(state["buffer"])

    def _views(self, numbers: int) -> tuple[list[Tensor], Tensor]:
        """Views of the buffer: one a vector in its shape, and the numbers."""
        sizes = [shape.numel() for shape in self._shapes]
        self._filled = self.buffer[: sum(sizes) + numbers]
        *parts, tail = self._filled.split([*sizes, numbers])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)], tail
