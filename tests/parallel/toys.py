"""Small problems that the replicas of a test train on, and how they are driven and read.

A problem's loss is a function of the weights, the shard and the update's number alone, so that a run can be repeated,
interrupted, and distributed over any number of replicas.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter

from fptt_dist.algorithm import FPTT, ConsensusTerm
from fptt_dist.algorithm.diagnostics import mean_squared_scale
from fptt_dist.parallel import (
    AveragedDual,
    Communicator,
    Consensus,
    Engine,
    GradientSync,
    LocalDual,
    NoSync,
    Replicated,
)
from fptt_dist.parallel.control import Control
from tests.algorithm.helpers import BASES, snapshot

Array = NDArray[np.float64]
Rate = Callable[[int], float]
OF_FPTT: dict[str, Any] = {"make_term": ConsensusTerm, "mean_squared_scale": mean_squared_scale}

SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (), (5,), (0,), (1,), (2, 1, 3))
EXAMPLES = 12  # of a global batch
BASE_OF: dict[str, tuple[str, dict[str, Any]]] = {  # name → numpy twin and its options
    name: (BASES[name].rule, {**BASES[name].options, **BASES[name].extra}) for name in ("sgd", "sgd_momentum", "adam")
}


@cache
def _coefficients(
    kinds: tuple[tuple[tuple[int, ...], torch.dtype], ...], noise: float, shard: int, window: int
) -> list[tuple[Tensor, Tensor]]:
    fixed = torch.Generator().manual_seed(100 + shard)
    fresh = torch.Generator().manual_seed(10_000 + 100 * window + shard)
    found = []
    for shape, kind in kinds:
        a = 0.3 + 2.0 * torch.rand(shape, generator=fixed, dtype=torch.float64)
        c = torch.randn(shape, generator=fixed, dtype=torch.float64)
        c = c + noise * torch.randn(shape, generator=fresh, dtype=torch.float64)
        found.append((a.to(kind), c.to(kind)))
    return found


class Quadratic(nn.Module):
    """½ Σ_i a_i ‖p_i − c_i‖² with curvatures that differ by shard and targets that differ by shard and update."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, *, noise: float = 0.5, shapes: Sequence[tuple[int, ...]] = SHAPES
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for i, shape in enumerate(shapes):
            value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(f"p{i}", Parameter(value))
        self.noise = noise

    def coefficients(self, shard: int, window: int) -> list[tuple[Tensor, Tensor]]:
        """a and c of each parameter."""
        kinds = tuple((tuple(p.shape), p.dtype) for p in self.parameters())
        return _coefficients(kinds, self.noise, shard, window if self.noise else 0)

    def loss(self, shard: int, window: int) -> Tensor:
        """Of one shard at one update."""
        pairs = zip(self.parameters(), self.coefficients(shard, window), strict=True)
        return torch.stack([0.5 * (a * (p - c).square()).sum() for p, (a, c) in pairs]).sum()

    def gradients(self, weights: list[Array], shard: int, window: int) -> list[Array]:
        """Of `loss`, by hand."""
        pairs = zip(weights, self.coefficients(shard, window), strict=True)
        return [a.double().numpy() * (w - c.double().numpy()) for w, (a, c) in pairs]

    def optimum(self, shards: int) -> list[Array]:
        """The minimiser of the shards' sum, without noise."""
        each = [self.coefficients(shard, 0) for shard in range(shards)]
        assert self.noise == 0.0
        return [
            (sum(a * c for a, c in same) / sum(a for a, _ in same)).double().numpy()  # pyright: ignore
            for same in zip(*each, strict=True)
        ]


class Recurrent(nn.Module):
    """A small LSTM on sequences of its own for each update; a shard is a slice of the batch of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(2, 4)
        self.read = nn.Linear(4, 1)
        generator = torch.Generator().manual_seed(3)  # the threads share torch's own stream
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.rand(p.shape, generator=generator) - 0.5)

    def loss(self, shard: slice, window: int) -> Tensor:
        """The mean squared error of the slice's sequences."""
        generator = torch.Generator().manual_seed(window)
        x = torch.randn(5, EXAMPLES, 2, generator=generator).to(self.read.weight.dtype)[:, shard]
        y, _ = self.layer(x)
        return (self.read(y[-1]) - x.sum((0, 2)).unsqueeze(1)).square().mean()


def consensus(
    workers: Communicator,
    *,
    every: int,
    dual: Literal["shared", "damped", "admm"] = "shared",
    weights: Literal["average", "center"] = "average",
    slow: bool = True,
    damping: float = 0.25,
    share: float | None = None,
    compressed: bool = False,
    **options: Any,
) -> Engine:
    """Consensus of all `workers`; `share` defaults to equal ones."""
    share = 1.0 / workers.world if share is None else share
    if dual == "shared":
        what = AveragedDual(weights, slow=slow, each_window=every == 1, compressed=compressed)
    else:
        what = LocalDual(dual, damping, **OF_FPTT)
    warmup = GradientSync(workers, share) if options.get("warmup_updates") else None
    sync = Consensus(workers, share, what, sync_every=every, warmup=warmup, compressed=compressed, **options)
    return Engine(workers, Replicated(), sync)


def single_worker() -> Engine:
    """One worker."""
    return Engine(Communicator(), Replicated(), NoSync())


def averaging(workers: Communicator, share: float | None = None) -> Engine:
    """Gradients averaged over all `workers`; `share` defaults to equal ones."""
    return Engine(workers, Replicated(), GradientSync(workers, 1.0 / workers.world if share is None else share))


def told(engine: Engine) -> Control:
    """The flags, after a batch's end."""
    engine.after_batch()
    return engine.control


class Run:
    """One worker of a run.

    Args:
        engine: not yet attached.
        model: a problem.
        shard: what its loss takes.
        base: the base optimizer, of `BASES`.
        lr: a number, or a function of the update's number.
        settings: of FPTT.
    """

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        shard: Any,
        *,
        base: str = "sgd",
        lr: float | Rate = 0.05,
        alpha: float = 0.5,
        **settings: Any,
    ) -> None:
        self.engine, self.shard = engine, shard
        engine.prepare(model)
        self.model: Any = engine.placement.module
        self.rate: Rate = lr if callable(lr) else lambda window: lr
        self.params: list[Tensor] = list(model.parameters())
        self.optimizer = FPTT(
            BASES[base].make(self.params, lr=self.rate(0), **BASES[base].options), alpha=alpha, **settings
        )
        engine.attach(self.optimizer)

    def advance(self, stop: int, *, each: Callable[["Run"], Any] = lambda run: None) -> "Run":
        """Train up to update `stop`; `each` is called after every update."""
        while self.engine.control.updates < stop:
            window = self.engine.control.updates
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(window)
            self.engine.backward(self.model.loss(self.shard, window), last=True)
            self.engine.step()
            self.optimizer.zero_grad()
            self.engine.after_update()
            each(self)
        return self

    def slow(self) -> list[Tensor]:
        """Copies of W, W̄ and u."""
        return [t.detach().clone() for part in self.optimizer.slow_state() for t in part]

    def everything(self) -> list[Tensor]:
        """Copies of W, W̄, u and the moments."""
        return snapshot(self.optimizer, self.params)


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether both are the same numbers at tolerance 0."""
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def close(left: Sequence[Tensor | Array], right: Sequence[Tensor | Array], tolerance: float = 1e-11) -> None:
    """Both are the same numbers to rounding."""
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance)


def mean_of(lists: Sequence[Sequence[Tensor]], shares: Sequence[float] | None = None) -> list[Tensor]:
    """The weighted mean, tensor by tensor, in float64."""
    weights = [1.0 / len(lists)] * len(lists) if shares is None else shares
    return [
        torch.stack([w * t.double() for w, t in zip(weights, same, strict=True)]).sum(0)
        for same in zip(*lists, strict=True)
    ]
