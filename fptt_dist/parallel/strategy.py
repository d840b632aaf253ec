"""What a strategy is: who holds what, and what travels between the workers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from fptt_dist.parallel.collectives import Communicator, Traffic
from fptt_dist.parallel.finite import NEVER, SUM, FirstSight, Sighting
from fptt_dist.parallel.pieces import Piece, whole

Weights = Literal["center", "weights"]


class OptimizerView(Protocol):
    """What a strategy sees of the optimizer.

    Attributes:
        param_groups: torch's.
        beta: how much of W̄ an update renews.
        update: "algorithm2" where u is not renewed by u ← u − (W' − W̄).
        anchor: receives the second pull (`center`, `dual`, `strength` by parameter).
        norm_reduce: receives what maps a part's sum of squares to the whole's.
    """

    param_groups: list[dict[str, Any]]
    beta: float
    update: str
    anchor: Any
    norm_reduce: Callable[[Tensor], Tensor] | None

    @property
    def step(self) -> Callable[..., Any]:
        """One update."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        ...

    def norms(self) -> dict[str, Tensor]:
        """2-norms for telemetry, between backward and step."""
        ...

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> Any:
        """Call `hook` before each update."""
        ...

    def at_center(self) -> AbstractContextManager[None]:
        """The model computes with W̄ within the context."""
        ...

    def showing(self, params: list[Tensor], values: list[Tensor]) -> AbstractContextManager[None]:
        """`params` have `values` within the context, in which an update is refused."""
        ...

    def slow(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters, W̄ and u, the optimizer's own tensors."""
        ...

    def mean_squared_scale(self, *, by_tensor: bool = False) -> Tensor:
        """s², what the optimizer divides a gradient by, squared and averaged: (1,), or (P,) by parameter."""
        ...


@dataclass
class Plan:
    """What travels for one batch of sequences, as it will be.

    Attributes:
        collectives: per batch, a mean.
        bytes: handed over by each worker per batch, a mean.
        each: bytes of one collective.
        what: in words.
    """

    collectives: float
    bytes: float
    each: int
    what: str


@dataclass
class StrategyState:
    """What a checkpoint holds of a strategy, as tensors by name.

    Attributes:
        shared: equal on all workers.
        own: this worker's.
    """

    shared: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)


class Strategy(ABC):
    """One way to train with several workers. The loop calls, in this order and the same on every worker:

    `prepare`, `parameters`, `attach`, then for each window `backward`, `step`, `after_window`; `healthy` and `stopping`
    after each batch; `settle` when an epoch resets the slow variables and at the end.

    Args:
        everyone: all workers.

    Attributes:
        everyone: all workers.
        module: what computes in training, from `attach` on.
        window: updates done, the clock that all agreements go by.
        replicated: whether weights, slow variables and moments are equal on all workers.
        casts: whether the module computes in bf16 by itself.
    """

    module: nn.Module
    casts = False
    replicated = True

    def __init__(self, everyone: Communicator) -> None:
        self.everyone = everyone
        self.window = 0
        self._stop = False
        self._pieces: list[Piece] = []

    @property
    def rank(self) -> int:
        """This worker, from 0."""
        return self.everyone.rank

    @property
    def world(self) -> int:
        """Number of workers."""
        return self.everyone.world

    @property
    def voices(self) -> int:
        """How many agree: the workers, or the machines where a machine's workers are equal."""
        return self.world

    def prepare(self, model: nn.Module) -> None:
        """Take the model, before the optimizer exists, and bring every worker to rank 0's parameters and buffers.

        Raises:
            RuntimeError: they are not equal, bit for bit, after that.
        """
        self._network = self.module = model
        tensors = [t.detach() for t in (*model.parameters(), *model.buffers())]
        self.everyone.broadcast(tensors, name="weights")
        wide = [t for t in tensors if t.element_size() % 4 == 0]
        if not self.everyone.equal(wide, name="weights"):
            raise RuntimeError("the workers' weights differ after the broadcast from rank 0")

    def parameters(self) -> list[Tensor]:
        """What the optimizer is to step."""
        return list(self._network.parameters())

    def attach(self, optimizer: OptimizerView) -> None:
        """Take the optimizer of `parameters`."""
        self.optimizer = optimizer
        pieces = self.pieces()
        self._watch = FirstSight([piece.name for piece in pieces], optimizer.param_groups[0]["params"][0].device)
        self._holds_all = all(piece.of(piece.tensor) is piece.tensor for piece in pieces)

    def pieces(self) -> list[Piece]:
        """What this worker holds of each parameter; the same list at each call, from `attach` on."""
        if not self._pieces:
            self._pieces = [whole(name, p) for name, p in self._network.named_parameters()]
        return self._pieces

    def copies(self) -> list[list[int]]:
        """Which workers hold one copy of weights, slow variables and moments together, where they are not all equal."""
        return [[rank] for rank in range(self.world)]

    def changed(self) -> None:
        """Called after the optimizer's tensors were written to from outside: the module now computes with them."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate one micro-batch's loss.

        Args:
            loss: 0-dim, a mean over this worker's sequences, weighted by the micro-batch's share of them.
            last: whether an update follows; then the gradients are made what the update shall use.
        """

    def step(self, closure: Callable[[], Any] | None = None, *, measure: bool = False) -> dict[str, Tensor]:
        """One update of the optimizer, which leaves no gradients.

        Args:
            closure: for an update that takes a second gradient.
            measure: whether to read the optimizer's norms.

        Returns:
            The norms by name, of the gradients before the update; empty unless `measure`.
        """
        norms = self.optimizer.norms() if measure else {}
        self.optimizer.step(closure)
        for p in self._parameters():
            p.grad = None
        return norms

    def guarding(self) -> AbstractContextManager[None]:
        """A batch is trained within this context, which tells a lost worker from an error of the model."""
        return nullcontext()

    def after_window(self) -> None:
        """Called after each window's update; a place to agree with the other workers."""
        self.window += 1
        self._watch.next_window()

    def settle(self) -> None:
        """All workers agree now: at an epoch's reset and at the end."""

    @contextmanager
    def evaluating(self, weights: Weights, *, own: bool = False) -> Iterator[nn.Module]:
        """A module that computes with the agreed W̄ or W within the context; afterwards what was there is back.

        `own`: with this worker's, where the workers have each their own.
        """
        with self.optimizer.at_center() if weights == "center" else nullcontext():
            yield self._network

    @contextmanager
    def showing(self, values: list[Tensor]) -> Iterator[nn.Module]:
        """A module that computes with `values`, one for each of `parameters`; afterwards what was there is back."""
        with self.optimizer.showing(self._parameters(), values):
            yield self._network

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the workers (metrics, estimates), in place."""
        return self.everyone.sum(tensor, name="metrics")

    @abstractmethod
    def healthy(self) -> bool:
        """Whether loss and gradients were finite, as far as all workers know alike; the same answer everywhere."""

    def first_sight(self) -> Sighting:
        """Where something was first not finite; called by all workers once `healthy` says no."""
        seen = self._watch.agree(self.everyone, self.window)
        return seen if seen.window < NEVER else Sighting(seen.rank, self.window - 1, SUM)

    def request_stop(self) -> None:
        """This worker was asked to stop; `stopping` says when all agree."""
        self._stop = True

    def stopping(self) -> bool:
        """Whether all workers stop after this batch; the same answer everywhere."""
        return self._stop

    def any_beside(self, flag: bool) -> bool:
        """Whether `flag` is set on any of the workers that hold one copy together."""
        return flag

    def vote(self) -> None:
        """Bring `healthy` and `stopping` up to date on all workers, before a checkpoint; changes no weight."""

    def drain(self) -> None:
        """Wait for collectives under way; changes no number."""

    def measured(self) -> dict[str, Tensor]:
        """What this worker measured at the last agreement, by name, 0-dim; telemetry takes the largest of all."""
        return {}

    def communicators(self) -> list[Communicator]:
        """All through which numbers travel."""
        return [self.everyone]

    def traffic(self) -> dict[str, Traffic]:
        """What the collectives have cost this worker so far, by name."""
        total: dict[str, Traffic] = {}
        for each in self.communicators():
            for name, cost in each.traffic.items():
                sum_ = total.setdefault(name, Traffic())
                sum_.calls += cost.calls
                sum_.bytes += cost.bytes
                sum_.seconds += cost.seconds
        return total

    def plan(self, updates: int) -> Plan:
        """What travels for one batch of `updates` windows."""
        return Plan(0.0, 0.0, 0, "nothing travels")

    def state_dict(self) -> StrategyState:
        """What a checkpoint must hold, `window` apart; collectives under way must have been drained."""
        return StrategyState()

    def load_state_dict(self, state: StrategyState, window: int) -> None:
        """Bring back what `state_dict` gave at update `window`; `own` is empty after a change of the world's size."""
        self.window = window

    def _look(self, loss: Tensor) -> None:
        """Look at this update's loss and gradients."""
        gradients = [piece.tensor.grad for piece in self.pieces()]
        if not self._holds_all:
            gradients = [None if g is None else p.of(g) for p, g in zip(self.pieces(), gradients, strict=True)]
        self._watch.note(loss, gradients)

    def _note(self, loss: Tensor) -> Tensor:
        """The same; whether all have been finite so far (0-dim bool)."""
        self._look(loss)
        return self._watch.finite()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
