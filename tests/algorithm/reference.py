"""FPTT in float64 numpy, written from the equations alone: what the torch implementation is measured against.

v  = g + α D [c (W − W̄) − κ u] + A (W − Z) − μ      D = 1, or (√v̂ + ε)/r from the moments before the step
r  = max(η, (1 + √(1−β))/2 · r of the update before, G ε₆₄ |W| by element),  G = α [c + (c + κ/√β)/(1 − √(1−β))]
W' = base (W, s v),   s = min(1, max_norm / (‖v‖ + 1e-6))
u' = u − (W' − W̄)                                   second_gradient: u' = g(W')/α
W̄' = (1 − β) W̄ + β (W' − u')
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Memory = dict[str, Any]
Rule = Callable[..., Array]


def sgd(
    w: Array,
    g: Array,
    s: Memory,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Array:
    """SGD; the buffer starts as the first gradient, undampened."""
    g = g + weight_decay * w
    if momentum:
        s["q"] = momentum * s["q"] + (1 - dampening) * g if "q" in s else g
        g = g + momentum * s["q"] if nesterov else s["q"]
    return w - lr * g


def adam(
    w: Array,
    g: Array,
    s: Memory,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    decoupled: bool = False,
) -> Array:
    """Adam; `decoupled` is AdamW."""
    w, g = (w * (1 - lr * weight_decay), g) if decoupled else (w, g + weight_decay * w)
    t = s["t"] = s.get("t", 0) + 1
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g**2
    s["max"] = np.maximum(s.get("max", 0.0), s["v"]) if amsgrad else s["v"]
    s["v_hat"], s["eps"] = s["max"] / (1 - betas[1] ** t), eps
    return w - lr * s["m"] / (1 - betas[0] ** t) / (np.sqrt(s["v_hat"]) + eps)


def rmsprop(
    w: Array,
    g: Array,
    s: Memory,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Array:
    """RMSprop; `alpha` is its smoothing constant, as torch calls it."""
    g = g + weight_decay * w
    s["v"] = alpha * s.get("v", 0.0) + (1 - alpha) * g**2
    s["mean"] = alpha * s.get("mean", 0.0) + (1 - alpha) * g
    s["v_hat"], s["eps"] = s["v"] - s["mean"] ** 2 if centered else s["v"], eps
    s["q"] = momentum * s.get("q", 0.0) + g / (np.sqrt(s["v_hat"]) + eps)
    return w - lr * s["q"]


class Reference:
    """FPTT over a list of arrays; `lr` and `alpha` are per parameter and may be changed between updates."""

    def __init__(
        self,
        weights: Sequence[Array],
        rule: Rule,
        lr: Sequence[float],
        alpha: Sequence[float],
        *,
        options: Mapping[str, Any] | None = None,
        beta: float = 0.5,
        dual_weight: float = 1.0,
        prox_weight: float = 1.0,
        update_rule: str = "gradient",
        metric: str = "euclidean",
        max_norm: float | None = None,
        clip_scope: str = "total",
    ) -> None:
        self.W = [np.array(w, dtype=np.float64) for w in weights]
        self.rule, self.lr, self.alpha, self.options = rule, list(lr), list(alpha), dict(options or {})
        self.beta, self.kappa, self.c = beta, dual_weight, prox_weight
        self.update_rule, self.metric, self.max_norm, self.clip_scope = update_rule, metric, max_norm, clip_scope
        self.center: dict[int, Array] = {}
        self.u: dict[int, Array] = {}
        self.rate: dict[int, float] = {}
        self.alpha_of_u: dict[int, float] = {}
        self.memory: list[Memory] = [{} for _ in weights]
        self.consensus_term: dict[int, tuple[Array, Array, float]] = {}  # (Z, μ, A) by index

    def clipped(self, v: dict[int, Array]) -> dict[int, Array]:
        """All arrays scaled by one factor, so that their common norm is at most about max_norm."""
        if self.max_norm is None:
            return v
        norm = np.sqrt(sum(float((x**2).sum()) for x in v.values()))
        return {i: x * min(1.0, self.max_norm / (norm + 1e-6)) for i, x in v.items()}

    def regularizer(self, i: int) -> Array:
        """α D [c (W − W̄) − κ u] of parameter i."""
        regularizer = self.alpha[i] * (self.c * (self.W[i] - self.center[i]) - self.kappa * self.u[i])
        if self.metric == "euclidean":
            return regularizer
        s = self.memory[i]
        if "v_hat" not in s or self.lr[i] == 0.0:
            return 0.0 * regularizer
        gain = self.alpha[i] * (self.c + (self.c + self.kappa / np.sqrt(self.beta)) / (1 - np.sqrt(1 - self.beta)))
        floor = gain * np.finfo(np.float64).eps * np.abs(self.W[i])
        return regularizer * (np.sqrt(s["v_hat"]) + s["eps"]) / np.maximum(self.rate[i], floor)

    def step(
        self, gradients: Sequence[Array | None], second: Callable[[list[Array]], list[Array]] | None = None
    ) -> None:
        """One update; `second` gives second_gradient's gradients at the new weights."""
        v = {i: np.array(g, dtype=np.float64) for i, g in enumerate(gradients) if g is not None}
        for i in v:
            self.center.setdefault(i, self.W[i].copy())
            self.u.setdefault(i, np.zeros_like(self.W[i]))
            self.rate[i] = max(self.lr[i], (1 + np.sqrt(1 - self.beta)) / 2 * self.rate.get(i, 0.0), 1e-28)
            if self.update_rule == "second_gradient":
                self.u[i] = self.u[i] * self.alpha_of_u.get(i, self.alpha[i]) / self.alpha[i]
                self.alpha_of_u[i] = self.alpha[i]
        v = self.clipped(v) if self.clip_scope == "gradient" else v
        for i in v:
            if self.update_rule != "proximal":
                v[i] = v[i] + self.regularizer(i)
            if i in self.consensus_term:
                center, dual, strength = self.consensus_term[i]
                v[i] = v[i] + strength * (self.W[i] - center) - dual
        v = self.clipped(v) if self.clip_scope == "total" else v
        for i in v:
            self.W[i] = self.rule(self.W[i], v[i], self.memory[i], self.lr[i], **self.options)
            if self.update_rule == "proximal":
                a = self.lr[i] * self.alpha[i]
                moved = self.W[i] + a * (self.c * self.center[i] + self.kappa * self.u[i])
                self.W[i] = moved / (1 + a * self.c)
        fresh = second(self.W) if second is not None else None
        for i in v:
            self.u[i] = self.u[i] - (self.W[i] - self.center[i]) if fresh is None else fresh[i] / self.alpha[i]
            self.center[i] = (1 - self.beta) * self.center[i] + self.beta * (self.W[i] - self.u[i])

    def reset_to_center(self, weights: bool = True, dual: bool = True) -> None:
        """W ← W̄ and u ← 0."""
        for i in self.center:
            self.W[i] = self.center[i].copy() if weights else self.W[i]
            self.u[i] = 0.0 * self.u[i] if dual else self.u[i]
