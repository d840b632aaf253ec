"""Interface of a placement: which worker of a replica holds which parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from fptt_dist.parallel.comm.comm_estimate import NOTHING, CommEstimate
from fptt_dist.parallel.comm.communicator import Communicator
from fptt_dist.parallel.control import Control
from fptt_dist.parallel.optimizer_view import Measurement, OptimizerView, Weights
from fptt_dist.parallel.placement.shard import ParameterShard, full_shard


class Placement(ABC):
    """One replica of the model: the shard of each worker, and how it is differentiated and updated.

    Args:
        workers: the workers of the replica.

    Attributes:
        workers: the workers of the replica.
        module: the module that computes in training, from `prepare` or `attach` on.
        whole: whether each worker holds all parameters and their optimizer state.
        averages: whether `backward` averages the gradients over `workers`.
        computes_in_bf16: whether the module computes in bf16 by itself.
    """

    module: nn.Module
    whole = True
    averages = False
    computes_in_bf16 = False

    def __init__(self, workers: Communicator) -> None:
        self.workers = workers
        self._shards: list[ParameterShard] = []

    def prepare(self, model: nn.Module) -> None:
        """Take the model, whose parameters are equal on all workers, before the optimizer exists."""
        self.network = self.module = model

    def parameters(self) -> list[Tensor]:
        """Return the tensors that the optimizer is to step."""
        return list(self.network.parameters())

    def attach(self, optimizer: OptimizerView, control: Control) -> None:
        """Take the optimizer of `parameters`."""
        self.optimizer = optimizer
        self.control = control

    def stepped(self) -> list[Tensor]:
        """Return the tensors in the optimizer's groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def shards(self) -> list[ParameterShard]:
        """Return this worker's shard of each parameter; the same list at each call, from `attach` on."""
        if not self._shards:
            self._shards = [full_shard(name, p) for name, p in self.network.named_parameters()]
        return self._shards

    def gradients(self) -> list[Tensor | None]:
        """Return this worker's gradient of each of `shards`, between backward and step."""
        return [shard.tensor.grad for shard in self.shards()]

    def on_params_written(self) -> None:
        """Make the module compute with the optimizer's tensors, after they were written to from outside."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate one micro-batch's loss.

        Args:
            loss: 0-dim, a mean over this worker's sequences, weighted by the micro-batch's share of them.
            last: whether an update follows.
        """

    def step(
        self, closure: Callable[[], Any] | None = None, *, measure: Measurement | None = None
    ) -> dict[str, Tensor]:
        """Do one update of the optimizer, which leaves no gradients; see `Engine.step`."""
        norms = measure() if measure is not None else {}
        self.optimizer.step(closure)
        for p in self.stepped():
            p.grad = None
        return norms

    def collective_errors(self) -> AbstractContextManager[None]:
        """Return the context to train a batch in, which tells a lost worker from an error of the model."""
        return nullcontext()

    @contextmanager
    def eval_weights(self, weights: Weights) -> Iterator[nn.Module]:
        """Yield a module that computes with W̄ or W; the previous values are restored afterwards."""
        with self.optimizer.at_center() if weights == "center" else nullcontext():
            yield self.network

    @contextmanager
    def swapped_weights(self, values: list[Tensor]) -> Iterator[nn.Module]:
        """Yield a module that computes with `values`, one for each of `stepped`; the old ones are restored then."""
        with self.optimizer.swapped_weights(self.stepped(), values):
            yield self.network

    def any_in_replica(self, flag: bool) -> bool:
        """Return whether `flag` is set on any worker of this replica."""
        return flag

    def communicators(self) -> list[Communicator]:
        """Return the communicators that the placement uses."""
        return [self.workers]

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate the communication for one batch of `updates` windows."""
        return NOTHING
