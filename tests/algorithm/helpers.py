"""What the tests of this folder share: bases, a small problem, and how a trajectory is driven and read."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fptt_dist.algorithm import FPTT

Update = Literal["gradient", "proximal", "second_gradient"]
Clip = Literal["total", "gradient"]
SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (5,), (2, 1, 3))


@dataclass(frozen=True)
class Base:
    """A base optimizer of torch, and the name of its numpy twin in `reference`."""

    make: Callable[..., Optimizer]
    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # of the numpy twin alone


BASES = {
    "sgd": Base(SGD, "sgd"),
    "sgd_momentum": Base(SGD, "sgd", {"momentum": 0.9, "weight_decay": 0.01}),
    "sgd_nesterov": Base(SGD, "sgd", {"momentum": 0.8, "nesterov": True}),
    "sgd_dampening": Base(SGD, "sgd", {"momentum": 0.8, "dampening": 0.3}),
    "adam": Base(Adam, "adam", {"weight_decay": 0.01}),
    "adamw": Base(AdamW, "adam", {"weight_decay": 0.1, "betas": (0.8, 0.9)}, {"decoupled": True}),
    "amsgrad": Base(Adam, "adam", {"amsgrad": True, "betas": (0.9, 0.7)}),
    "rmsprop": Base(RMSprop, "rmsprop", {"alpha": 0.9, "eps": 1e-4}),
    "rmsprop_centered": Base(RMSprop, "rmsprop", {"alpha": 0.8, "centered": True, "momentum": 0.5}),
}
ADAPTIVE = ("adam", "adamw", "amsgrad", "rmsprop", "rmsprop_centered")


def parameters(
    dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0
) -> list[Parameter]:
    """Parameters with the same values for the same seed; the float32 ones are the rounded float64 ones."""
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def noise(t: int, like: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
    """Standard normal tensors of the shapes and types of `like`, a function of t alone."""
    generator = torch.Generator().manual_seed(1000 + t)
    return [scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in like]


def set_gradients(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Put (copies of) the gradients into `.grad`."""
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if g is None else g.clone()


def quadratic(optimizer: Optimizer, params: Sequence[Tensor], t: int) -> Callable[[], Tensor]:
    """A closure: clears the gradients and runs backward on Σ_i ½ (i + 1) ‖p_i − target_i(t)‖²."""
    targets = noise(t, params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = [0.5 * (i + 1) * (p - c).square().sum() for i, (p, c) in enumerate(zip(params, targets, strict=True))]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss

    return closure


def advance(optimizer: Optimizer, params: Sequence[Tensor], start: int, stop: int) -> None:
    """Updates `start` to `stop` − 1 on the quadratic problem, whose targets are a function of the update's number."""
    for t in range(start, stop):
        closure = quadratic(optimizer, params, t)
        if isinstance(optimizer, FPTT) and optimizer.constants.update_rule == "second_gradient":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def two_groups(params: Sequence[Tensor], base: Base, **options: Any) -> FPTT:
    """FPTT with the last parameter in a group of its own, with half the learning rate."""
    groups = [{"params": list(params[:-1])}, {"params": [params[-1]], "lr": 0.025}]
    return FPTT(base.make(groups, lr=0.05, **base.options), **options)


def snapshot(optimizer: FPTT, params: Sequence[Tensor]) -> list[Tensor]:
    """Copies of W, W̄, u and every tensor of the base's state, of every parameter."""
    kept = [p.detach().clone() for p in params]
    for p in params:
        state = optimizer.state.get(p, {})
        kept += [state[name].clone() for name in sorted(state) if isinstance(state[name], Tensor)]
    return kept


def same_bits(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether both lists hold equal tensors: types, shapes and every element's bits."""
    words = {4: torch.int32, 8: torch.int64}
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a.view(words[a.itemsize]), b.view(words[b.itemsize]))
        for a, b in zip(left, right, strict=True)
    )


def scaled_dual(optimizer: FPTT, param: Tensor) -> Tensor:
    """A copy of u."""
    return optimizer.state[param]["scaled_dual"].clone()


def numpy_of(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Float64 copies."""
    return [t.detach().double().numpy().copy() for t in tensors]


def resume(checkpoint: str, result: str, start: int, stop: int) -> None:
    """Continue saved runs in this process and save what they reach; `test_copies` runs it as a program of its own."""
    reached = []
    for saved in torch.load(checkpoint, weights_only=True):
        params = parameters(seed=99)
        with torch.no_grad():
            for p, value in zip(params, saved["weights"], strict=True):
                p.copy_(value)
        optimizer = two_groups(params, BASES[saved["base"]], **saved["options"])
        optimizer.load_state_dict(saved["optimizer"])
        advance(optimizer, params, start, stop)
        reached.append(snapshot(optimizer, params))
    torch.save(reached, result)


if __name__ == "__main__":
    resume(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
