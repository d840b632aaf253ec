"""Several workers in one process, as threads: the mathematics of a strategy in milliseconds.

    fast = together(4, lambda workers: train(workers))      [what rank 0 returned, what rank 1 returned, …]

A sum is taken in the order of the ranks, so all end with the same bits, and a run is repeated bit for bit. As with a
real backend, all must call the same collectives in the same order with tensors of one shape and type; until a sum's
`wait` returns, its tensor holds NaN.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from fptt_dist.parallel import Communicator

Result = TypeVar("Result")
PATIENCE = 20.0  # seconds


class LeftAloneError(RuntimeError):
    """Another replica failed, or did not come to a collective in time."""


@dataclass
class Hub:
    """Where the replicas of one group meet; one for all of them.

    Attributes:
        ranks: of the members among all replicas.
        root: the hub of all replicas, which knows the others.
        given: what each member has handed in, by the number of the collective.
        taken: how many members have the result, by the number of the collective.
    """

    ranks: tuple[int, ...]
    root: "Hub | None" = None
    given: dict[int, dict[int, tuple[str, Tensor]]] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    groups: dict[tuple[int, ...], "Hub"] = field(default_factory=dict)
    news: threading.Condition = field(default_factory=threading.Condition)
    broken: bool = False

    def hand_in(self, number: int, member: int, kind: str, tensor: Tensor) -> None:
        """Give a copy of `tensor` to collective `number`; returns at once."""
        with self.news:
            self.given.setdefault(number, {})[member] = (kind, tensor.detach().clone())
            self.news.notify_all()

    def collect(self, number: int) -> list[Tensor]:
        """What all members gave to collective `number`, in their order; waits for the last of them."""
        with self.news:
            came = self.news.wait_for(lambda: self.broken or len(self.given[number]) == len(self.ranks), PATIENCE)
            if self.broken or not came:
                raise LeftAloneError(f"collective {number}: only {sorted(self.given[number])} of {self.ranks} came")
            calls = [self.given[number][member] for member in range(len(self.ranks))]
            self.taken[number] = self.taken.get(number, 0) + 1
            if self.taken[number] == len(self.ranks):
                del self.given[number], self.taken[number]
        described = {(kind, tuple(tensor.shape), tensor.dtype) for kind, tensor in calls}
        assert len(described) == 1, f"collective {number} is not the same everywhere: {described}"
        return [tensor for _, tensor in calls]

    def give_up(self) -> None:
        """Wake everybody who waits, with an error."""
        with self.news:
            self.broken = True
            self.news.notify_all()
        for group in list(self.groups.values()):
            group.give_up()

    def group(self, ranks: tuple[int, ...]) -> "Hub":
        """The hub of some of the replicas, the same for each that asks."""
        root = self.root or self
        with root.news:
            return root.groups.setdefault(ranks, Hub(ranks, root))


class Replica(Communicator):
    """One of the threads, as a communicator.

    Args:
        rank: this replica among all.
        hub: the group's.
    """

    def __init__(self, rank: int, hub: Hub) -> None:
        super().__init__(hub.ranks.index(rank), len(hub.ranks))
        self._global_rank = rank
        self._hub = hub
        self._calls = 0

    def group(self, ranks: list[int]) -> "Replica":
        """This replica among some of all."""
        return Replica(self._global_rank, self._hub.group(tuple(ranks)))

    def _all_reduce_async(self, tensor: Tensor, name: str) -> Callable[[], None]:
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        number = self._hand_in("sum", tensor)
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))

        def wait() -> None:
            first, *others = self._hub.collect(number)
            total = first.clone()
            for other in others:
                total += other
            tensor.copy_(total)

        return wait

    def _broadcast(self, tensor: Tensor) -> None:
        tensor.copy_(self._hub.collect(self._hand_in("broadcast", tensor))[0])

    def _barrier(self) -> None:
        self._hub.collect(self._hand_in("barrier", torch.zeros(0)))

    def _hand_in(self, kind: str, tensor: Tensor) -> int:
        self._calls += 1
        self._hub.hand_in(self._calls, self.rank, kind, tensor)
        return self._calls


def together(world: int, function: Callable[[Replica], Result]) -> list[Result]:
    """Run `function` on `world` replicas at once; what each returned, by rank, or the first error of any."""
    hub = Hub(tuple(range(world)))
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        try:
            results[rank] = function(Replica(rank, hub))
        except BaseException as error:  # the others must not wait for this one, whatever it was
            errors.append(error)
            hub.give_up()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda error: isinstance(error, LeftAloneError)):
        raise error
    return [results[rank] for rank in range(world)]
