"""Access to W and W̄ between updates: which of them the parameters hold, and how one starts again from the other."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt_dist.algorithm import update as updates
from fptt_dist.algorithm.slow_state import CENTER, REFERENCE_RATE, SCALED_DUAL, WEIGHTS, SlowState


class SlowWeights(Optimizer):
    """Methods of `FPTT` that make no update.

    | call                          | the parameters hold | W          | W̄         | u       |
    |-------------------------------|---------------------|------------|------------|---------|
    | `reset_to_center()`           | W                   | W ← W̄     | as it was  | u ← 0   |
    | `reset_to_weights()`          | W                   | as it was  | W̄ ← W     | u ← 0   |
    | `at_center()`                 | W̄, in a context    | as it was  | as it was  | as it was |
    | `eval()`, until `train()`     | W̄                  | as it was  | as it was  | as it was |
    """

    _shows_others = False  # the parameters have other weights than W, see `swapped_weights`

    @property
    def slow(self) -> SlowState:
        """W̄ and u by parameter."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_to_center(self, *, weights: bool = True, dual: bool = True) -> None:
        """Reset at the end of an epoch: W ← W̄ (`weights`) and u ← 0 (`dual`); the base keeps its optimizer state.

        The other direction, W̄ ← W, is `reset_to_weights`.

        Raises:
            RuntimeError: within `at_center`, or after `eval`.
        """
        self._require_own_weights("reset_to_center")
        params = self.slow.started
        if not params:
            return
        centers, duals = self.slow.of(params)
        if weights:
            updates.copy(params, centers)
        if dual:
            torch._foreach_zero_(duals)

    @torch.no_grad()
    def reset_to_weights(self) -> None:
        """Start again from the parameters as they are: W̄ ← W and u ← 0; the base keeps its optimizer state.

        Call it when something else has replaced the weights (`model.load_state_dict`, an average made by another tool):
        W̄ and u are those of the weights before, and the regularizer would lead back to them. FPTT does not notice by
        itself: a replacement looks like the projections and clamps that some models make after each step. The other
        direction, W ← W̄, is `reset_to_center`.

        Raises:
            RuntimeError: within `at_center`, or after `eval`.
        """
        self._require_own_weights("reset_to_weights")
        params = self.slow.started
        if not params:
            return
        centers, duals = self.slow.of(params)
        updates.copy(centers, params)
        torch._foreach_zero_(duals)
        for p in params:
            self.state[p].pop(REFERENCE_RATE, None)  # of W − W̄ before

    def at_center(self) -> AbstractContextManager[None]:
        """Within the context the model computes with W̄; W is back, bit for bit, on leaving, also on an exception.

        `step`, `reset_to_center`, `reset_to_weights`, `eval`, `train` and `load_state_dict` raise RuntimeError there:
        their effect on W would be lost.
        """
        params = self.slow.started
        return self.swapped_weights(params, self.slow.of(params)[0])

    @contextmanager
    def swapped_weights(self, params: list[Tensor], values: list[Tensor]) -> Iterator[None]:
        """Within the context `params` have `values`, one for each; otherwise `at_center`, with other weights."""
        outer = self._shows_others
        with torch.no_grad():
            weights = [p.detach().clone() for p in params]
            updates.copy(params, values)
        self._shows_others = True
        try:
            yield
        finally:
            self._shows_others = outer
            with torch.no_grad():
                updates.copy(params, weights)

    @torch.no_grad()
    def eval(self) -> None:
        """Let the parameters hold W̄ until `train()`; for programs that evaluate and save through hooks.

        W is kept in the state, one more copy of the parameters: a `state_dict()` saved now, with the model as it is
        now, resumes exactly. A second call changes nothing. In a loop of your own `at_center` is simpler.

        Raises:
            RuntimeError: within `at_center`.
        """
        self._require_no_context("eval")
        for p in self.slow.started:
            if WEIGHTS not in self.state[p]:
                self.state[p][WEIGHTS] = p.detach().clone()
                p.copy_(self.state[p][CENTER])

    @torch.no_grad()
    def train(self) -> None:
        """Let the parameters hold W again, bit for bit; without `eval()` before, nothing happens.

        Elements that were replaced since `eval()` (by loading the best checkpoint, say) stay as they are, and start
        again from there: W̄ ← W and u ← 0.

        Raises:
            RuntimeError: within `at_center`.
        """
        self._require_no_context("train")
        for p in self.slow.params:
            state = self.state.get(p, {})
            if WEIGHTS in state:
                center, dual = state[CENTER], state[SCALED_DUAL]
                replaced = _bring_back(p, state)
                del state[WEIGHTS]
                center.copy_(torch.where(replaced, p.to(center.dtype), center))
                dual.copy_(torch.where(replaced, torch.zeros_like(dual), dual))

    @torch.no_grad()
    def _leave_eval(self, before: dict[Tensor, dict[str, Any]]) -> None:
        """Bring W back after another state was loaded between `eval` and `train`.

        A parameter whose loaded state has W in it holds, or is about to be given, the W̄ of that state, and stays.

        Args:
            before: the states that had W, by parameter; elements that were replaced since stay as they are.
        """
        for p, state in before.items():
            if WEIGHTS not in self.state.get(p, {}):
                _bring_back(p, state)

    def center_state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return `model.state_dict()` with W̄ for the parameters that this optimizer trains, all tensors copied.

        Buffers, and parameters that have made no step, are the model's own.

        Raises:
            ValueError: this optimizer trains none of the model's parameters.
        """
        trained = set(self.slow.params)
        if not any(p in trained for p in model.parameters()):
            raise ValueError(
                f"model: this optimizer trains none of the parameters of this {type(model).__name__}: give the model "
                "that it was constructed for, not a copy of it"
            )
        with self.at_center():
            found = model.state_dict()
            for name, value in found.items():
                if isinstance(value, Tensor):
                    found[name] = value.detach().clone()
        return found

    def _require_own_weights(self, call: str) -> None:
        """Refuse a call where the parameters do not hold W.

        Raises:
            RuntimeError: within `at_center` or `swapped_weights`, or after `eval`.
        """
        self._require_no_context(call)
        if any(WEIGHTS in self.state.get(p, {}) for p in self.slow.params):
            raise RuntimeError(
                f"{call}() after eval(): the parameters hold W̄, and train() would bring back W as it was: call train() "
                "of the optimizer first"
            )

    def _require_no_context(self, call: str) -> None:
        """Refuse a call where the parameters have other weights for a time.

        Raises:
            RuntimeError: within `at_center` or `swapped_weights`.
        """
        if self._shows_others:
            raise RuntimeError(
                f"{call}() inside at_center(): what it did to the weights would be lost, since those of before come "
                "back when the context ends: leave the context first"
            )


def _bring_back(param: Tensor, state: dict[str, Any]) -> Tensor:
    """Copy W from the state where the parameter still holds W̄; return which elements hold something else.

    By element, without a decision that would have to wait for a GPU or for other shards.
    """
    replaced = param != state[CENTER].to(param.dtype)
    param.copy_(torch.where(replaced, param, state[WEIGHTS]))
    return replaced
