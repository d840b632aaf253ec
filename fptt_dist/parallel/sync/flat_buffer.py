"""Payload of a sync: one flat buffer, averaged over the workers in one all-reduce.

    fp32      the buffer holds w x                 mean = Σ / R          w = R n_r / Σ n, 1 for equal shares
    bf16      the buffer holds w (x − x̂) in bf16    mean = x̂ + Σ / R      x̂ as of the last sync, in full precision

Raw bf16 weights would lose every update smaller than 1/256 of a weight; differences lose 1/256 of an update.
"""

import torch
from torch import Tensor

from fptt_dist.parallel.comm.communicator import Communicator, Work


class FlatBuffer:
    """A preallocated buffer for tensors and, after them, a few scalars.

    Args:
        communicator: the workers that synchronize.
        weight: this worker's share of their sequences, in (0, 1]; the shares sum to 1.
        compressed: whether to send bf16 differences.
        template: tensors of the shapes and types of the largest payload.
        numbers: number of scalars.
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
        name: str = "sync",
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
        self._pending: Work | None = None

    @torch.no_grad()
    def start(self, vectors: list[Tensor], references: list[Tensor], numbers: Tensor) -> None:
        """Start the all-reduce of `vectors` and `numbers` (1-dim).

        Args:
            vectors: tensors of any shapes.
            references: x̂ for each vector, equal on all workers; read only if compressed, and again by `finish`.
            numbers: the scalars.
        """
        self._shapes = [v.shape for v in vectors]
        self._references = references
        parts, tail = self._views(len(numbers))
        moving = torch._foreach_sub(vectors, references) if self.compressed else vectors
        if self._relative_weight != 1.0:
            moving = torch._foreach_mul(moving, self._relative_weight)
        torch._foreach_copy_(parts, moving)
        tail.copy_(numbers * self._relative_weight)
        self._pending = self.communicator.all_reduce_async(self._filled, name=self.name)

    def wait(self) -> None:
        """Return when the sums are complete."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    @torch.no_grad()
    def finish(self, numbers: int) -> tuple[list[Tensor], Tensor]:
        """Return the means of the vectors (views of the buffer, or new if compressed) and of the numbers (float64)."""
        self.wait()
        parts, tail = self._views(numbers)
        world = float(self.communicator.world)
        riding = tail.double() / world
        if self.compressed:
            return [x + part.to(x.dtype).div_(world) for x, part in zip(self._references, parts, strict=True)], riding
        torch._foreach_div_(parts, world)
        return parts, riding

    def finite(self) -> bool:
        """Return whether all sums are finite: NaN and infinity on one worker survive a sum."""
        return bool(torch.isfinite(self._filled.abs().amax()))

    def state(self) -> dict[str, Tensor]:
        """Return the sums that wait to be applied."""
        return {"buffer": self._filled.clone()}

    def load(self, state: dict[str, Tensor], like: list[Tensor], references: list[Tensor]) -> None:
        """Restore what `state` returned, for vectors shaped `like`."""
        self._shapes = [v.shape for v in like]
        self._references = references
        self._filled = self.buffer[: len(state["buffer"])]
        self._filled.copy_(state["buffer"])

    def _views(self, numbers: int) -> tuple[list[Tensor], Tensor]:
        """Return views of the buffer: one per vector in its shape, and one of the numbers."""
        sizes = [shape.numel() for shape in self._shapes]
        self._filled = self.buffer[: sum(sizes) + numbers]
        *parts, tail = self._filled.split([*sizes, numbers])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)], tail
