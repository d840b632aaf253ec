"""FPTT's whole update in two passes over memory, compiled by torch's inductor: C++ on a CPU, Triton on a GPU.

    ‖v‖             reads W, g, W̄, u                            16 bytes per parameter, with clipping only
    the update      reads W, g, m, v, W̄, u, writes W, m, v, W̄, u  44 bytes per parameter

The same operations in the same order as the plain path, which is the reference; the compiler keeps what lies between
them in registers. It works on the tensors as they are: weights are not moved into a buffer of their own (cuDNN would
lose its own), and gradients need not be gathered.

What changes from update to update comes in as a tensor of coefficients, so that nothing is compiled anew and a CUDA
graph can be told of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fptt_dist.algorithm.preconditioner import rounding_gain
from fptt_dist.algorithm.update import Constants

# Columns of the coefficients: α; η, for Adam over 1 − β₁ᵗ; √(1 − β₂ᵗ); AdamW's factor on W; for the preconditioned
# metric √(1 − β₂ᵗ) of the step before, and the reference rate r, infinite where the regularizer's gradient is 0.
ALPHA, STEP, ROOT, DECAY, ROOT_BEFORE, REFERENCE = range(6)
# Of a group, compiled in:
CONSTANT = ("betas", "eps", "momentum", "dampening", "nesterov", "weight_decay", "beta", "dual_weight", "prox_weight")
DECOUPLED = "decoupled_weight_decay"  # whether the weights decay apart from the gradient, as AdamW's
MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "momentum": ("momentum_buffer",), "sgd": ()}

Group = dict[str, Any]
Lists = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Rule:
    """Constants of one group's update.

    Attributes:
        kind: the base optimizer's.
        betas: Adam's.
        eps: Adam's.
        momentum: SGD's.
        dampening: SGD's.
        nesterov: SGD's.
        weight_decay: what is added to the gradient, times W; AdamW's own is a coefficient.
        beta: FPTT's β.
        dual_weight: κ.
        prox_weight: c.
    """

    kind: Literal["adam", "momentum", "sgd"]
    betas: tuple[float, float] = (0.0, 0.0)
    eps: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    beta: float = 0.5
    dual_weight: float = 1.0
    prox_weight: float = 1.0


def refusal(base: Optimizer, update: str) -> str | None:
    """Return the reason why the update of this base optimizer cannot be fused, or None."""
    if type(base) not in (SGD, Adam, AdamW):
        return f"SGD, Adam and AdamW can be fused, not {type(base).__name__}"
    if update != "gradient":
        return f'update_rule="gradient" can be fused, not "{update}"'
    if any(group.get(flag) for group in base.param_groups for flag in ("amsgrad", "capturable", "differentiable")):
        return "amsgrad, capturable and differentiable base optimizers cannot be fused"
    if any("betas" in group and DECOUPLED not in group for group in base.param_groups):
        return f"Adam without {DECOUPLED} in its groups cannot be fused: update torch"
    return None


def rule_of(group: Group) -> Rule:
    """The constants of a group of SGD, Adam or AdamW."""
    own = {"beta": group["beta"], "dual_weight": group["dual_weight"], "prox_weight": group["prox_weight"]}
    if "betas" in group:
        decay = 0.0 if group[DECOUPLED] else group["weight_decay"]
        return Rule("adam", betas=tuple(group["betas"]), eps=group["eps"], weight_decay=decay, **own)
    return Rule(
        "momentum" if group["momentum"] else "sgd",
        momentum=group["momentum"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        weight_decay=group["weight_decay"],
        **own,
    )


def coefficients(group: Group, step: float, reference: float) -> list[float]:
    """The columns, in their order, of a group's update number `step` (from 1) with the reference rate r; the plain path
    has them in double precision too."""
    lr, alpha = float(group["lr"]), float(group["alpha"])
    if "betas" not in group:
        return [alpha, lr, 1.0, 1.0, 1.0, math.inf]
    first, second = group["betas"]
    before = 1.0 - second ** (step - 1)
    return [
        alpha,
        lr / (1.0 - first**step),
        math.sqrt(1.0 - second**step),
        1.0 - lr * group["weight_decay"] if group[DECOUPLED] else 1.0,
        math.sqrt(before) if before > 0.0 else 1.0,
        reference if lr != 0.0 and before > 0.0 else math.inf,
    ]


class Kernel:
    """The compiled update of tensors of given shapes.

    Args:
        rules: of each tensor.
        owner: the row of the coefficients that belongs to each tensor.
        constants: FPTT's.
        lists: tensors like those that it will be called with, by name, each list as long as the others: "w", "g",
            "center", "dual", and "moment0", "moment1" where the rules have moments.
        rates: (groups, coefficients) float64, on the tensors' device.

    Raises:
        Exception: whatever the compiler raises, e.g. where there is none.
    """

    def __init__(
        self, rules: Sequence[Rule], owner: Sequence[int], constants: Constants, lists: Lists, rates: Tensor
    ) -> None:
        self.rules, self.owner, self.constants = rules, owner, constants
        self._names = list(lists)
        tensors = [tensor for each in lists.values() for tensor in each]
        self._norm = None
        if constants.max_norm is not None:
            self._norm = _compiled(self._scale_of, [*tensors, rates])
        scale = torch.ones((), dtype=torch.float64, device=rates.device)
        self._update = _compiled(self._update_all, [*tensors, rates, scale])
        self._one = scale

    def __call__(self, tensors: list[Tensor], rates: Tensor) -> None:
        """Update in place. `tensors`: all lists, one behind the other."""
        scale = self._one if self._norm is None else self._norm(*tensors, rates)[0]
        self._update(*tensors, rates, scale)

    def _unpack(self, tensors: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of each parameter, by name."""
        size = len(self.rules)
        return [dict(zip(self._names, tensors[i::size], strict=True)) for i in range(size)]

    def _scale_of(self, *tensors: Tensor) -> tuple[Tensor]:
        """min(1, max_norm / (‖·‖ + 1e-6)) of loss + regularizer gradient, or of the loss's alone."""
        rates, squares = tensors[-1], []
        for each, rule, row in zip(self._unpack(tensors[:-1]), self.rules, self.owner, strict=True):
            value = each["g"]
            if self.constants.clip_scope == "total":
                value = value + self._regularizer_gradient(each, rule, rates[row])
            squares.append(value.square().sum(dtype=torch.float64))
        assert self.constants.max_norm is not None
        norm = torch.stack(squares).sum().sqrt()
        return (torch.clamp(self.constants.max_norm / (norm + 1e-6), max=1.0),)

    def _update_all(self, *tensors: Tensor) -> tuple[()]:
        rates, scale = tensors[-2:]
        for each, rule, row in zip(self._unpack(tensors[:-2]), self.rules, self.owner, strict=True):
            self._update_one(each, rule, rates[row], scale)
        return ()

    def _regularizer_gradient(self, each: dict[str, Tensor], rule: Rule, rate: Tensor) -> Tensor:
        """α D [c (W − W̄) − κ u]."""
        alpha, like = rate[ALPHA], each["w"].dtype
        regularizer = (each["w"] - each["center"]) * (alpha * rule.prox_weight).to(like)
        regularizer = regularizer - each["dual"] * (alpha * rule.dual_weight).to(like)
        if self.constants.metric == "preconditioned":
            gain = rounding_gain(1.0, rule.beta, rule.prox_weight, rule.dual_weight) * torch.finfo(like).eps
            divisor = torch.maximum(each["w"].abs() * (alpha * gain).to(like), rate[REFERENCE].to(like))
            root = each["moment1"].sqrt() / rate[ROOT_BEFORE].to(like)
            regularizer = regularizer * ((root + rule.eps) / divisor)
        return regularizer

    def _update_one(self, each: dict[str, Tensor], rule: Rule, rate: Tensor, scale: Tensor) -> None:
        w, like = each["w"], each["w"].dtype
        scale = scale.to(like)
        regularizer = self._regularizer_gradient(each, rule, rate)
        g = (
            (each["g"] + regularizer) * scale
            if self.constants.clip_scope == "total"
            else each["g"] * scale + regularizer
        )
        if rule.weight_decay:
            g = g + rule.weight_decay * w
        moved = _adam(each, rule, rate, g) if rule.kind == "adam" else _sgd(each, rule, rate, g)
        dual = each["dual"] - (moved - each["center"])
        center = (1.0 - rule.beta) * each["center"] + rule.beta * (moved - dual)
        w.copy_(moved)
        each["dual"].copy_(dual)
        each["center"].copy_(center)


def _adam(each: dict[str, Tensor], rule: Rule, rate: Tensor, g: Tensor) -> Tensor:
    """W after a step of Adam or AdamW; renews the moments."""
    like = g.dtype
    first, second = rule.betas
    m = each["moment0"] + (1.0 - first) * (g - each["moment0"])
    v = second * each["moment1"] + (1.0 - second) * g * g
    moved = each["w"] * rate[DECAY].to(like) - rate[STEP].to(like) * (m / (v.sqrt() / rate[ROOT].to(like) + rule.eps))
    each["moment0"].copy_(m)
    each["moment1"].copy_(v)
    return moved


def _sgd(each: dict[str, Tensor], rule: Rule, rate: Tensor, g: Tensor) -> Tensor:
    """W after a step of SGD; renews the momentum."""
    if rule.kind == "momentum":
        momentum = rule.momentum * each["moment0"] + (1.0 - rule.dampening) * g
        g = g + rule.momentum * momentum if rule.nesterov else momentum
        each["moment0"].copy_(momentum)
    return each["w"] - rate[STEP].to(g.dtype) * g


def _compiled(function: Callable[..., Any], tensors: list[Tensor]) -> Callable[..., Any]:
    """Compile without guards: whoever calls sees to it that shapes, types and strides stay what they were.

    `torch.compile` would look at each of them again at every call, which takes longer than the update of a small
    network.
    """
    import torch._inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        like = [torch.empty_like(t) for t in tensors]
        # Its own look at the sizes at each call costs as much as a small network's update.
        compiled: Any = torch._inductor.compile(make_fx(function)(*like), [*like], options={"size_asserts": False})
        return compiled
