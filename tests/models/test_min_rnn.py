"""minGRU and minLSTM against the paper's equations in numpy, and against another implementation."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from minGRU_pytorch.minGRU import minGRU
from minGRU_pytorch.minLSTM import minLSTM
from numpy.typing import NDArray

from fptt_dist.models import recurrent_layer
from fptt_dist.models.cells.min_rnn import MinGRU, MinLSTM

BOTH = pytest.mark.parametrize("kind", [MinGRU, MinLSTM])


def layer(kind: type[MinGRU | MinLSTM], inputs: int = 3, hidden: int = 5, **keys: Any) -> MinGRU | MinLSTM:
    torch.manual_seed(0)
    model = kind(inputs, hidden, **keys).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def reference(model: MinGRU | MinLSTM, x: NDArray, state: NDArray) -> tuple[NDArray, NDArray]:
    """h of the last layer at every step, and of all layers after the last, number by number."""
    values = {name: p.detach().numpy() for name, p in model.named_parameters()}
    size, h = model.hidden_size, state.copy()
    outputs = np.zeros((*x.shape[:2], size))
    for s in range(x.shape[0]):
        for b in range(x.shape[1]):
            below = x[s, b]
            for index in range(model.num_layers):
                drive = values[f"weight_ih_l{index}"] @ below + values[f"bias_l{index}"]
                for unit in range(size):
                    *gates, v = drive[unit::size]
                    candidate = v + 0.5 if v >= 0 else sigmoid(v)
                    if isinstance(model, MinGRU):
                        enter = sigmoid(gates[0])
                        forget = 1 - enter
                    else:
                        f, i = sigmoid(gates[0]), sigmoid(gates[1])
                        forget, enter = f / (f + i), i / (f + i)
                    h[index, b, unit] = forget * h[index, b, unit] + enter * candidate
                below = h[index, b]
            outputs[s, b] = below
    return outputs, h


@BOTH
@pytest.mark.parametrize(("layers", "steps"), [(1, 40), (2, 6)])
def test_the_papers_equations(kind: type[MinGRU | MinLSTM], layers: int, steps: int) -> None:
    model = layer(kind, layers=layers)
    x, state = torch.randn(steps, 2, 3, dtype=torch.float64), torch.randn(layers, 2, 5, dtype=torch.float64)
    output, end = model(x, state)
    expected, expected_end = reference(model, x.numpy(), state.numpy())
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(end.detach().numpy(), expected_end, rtol=0, atol=1e-12)


@BOTH
def test_another_implementation_in_logarithms(kind: type[MinGRU | MinLSTM]) -> None:
    torch.manual_seed(0)
    other: Any = (minGRU if kind is MinGRU else minLSTM)(5).double()
    model = kind(5, 5).double()
    candidate, *gates = next(other.parameters()).detach().chunk(model.rows)  # theirs comes first
    with torch.no_grad():
        dict(model.named_parameters())["weight_ih_l0"].copy_(torch.cat([*gates, candidate]))
        dict(model.named_parameters())["bias_l0"].zero_()
    x = torch.randn(50, 2, 5, dtype=torch.float64, requires_grad=True)
    output, end = model(x)
    expected = other(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (output, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-11)
    step = other(x[:1].transpose(0, 1), end.transpose(0, 1))  # of more steps its minLSTM begins with g(h)
    torch.testing.assert_close(model(x[:1], end)[0], step.transpose(0, 1), rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_gates_far_from_zero(kind: type[MinGRU | MinLSTM], size: float) -> None:
    model = kind(1, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        bias = dict(model.named_parameters())["bias_l0"]
        bias[:-1] = size  # f = i = 0 or 1, z = 0 or 1; the candidate is 0.5
    start = torch.ones(1, 1, 1)
    output, _ = model(torch.zeros(3, 1, 1), start)
    share = 0.5 if kind is MinLSTM else (0.0 if size < 0 else 1.0)
    expected = [0.5 + 0.5 * (1 - share) ** n for n in (1, 2, 3)]
    assert output.flatten().tolist() == expected
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@BOTH
def test_the_state_is_a_mean_of_positive_candidates(kind: type[MinGRU | MinLSTM]) -> None:
    model = layer(kind)
    x = 5 * torch.randn(200, 8, 3, dtype=torch.float64)
    candidate = model.gates(0, x, x)[-1]
    largest = (candidate.relu() + 0.5).amax(0)
    h, end = model(x)
    assert h.min() > 0
    assert (h <= largest).all()
    paper, _ = model(x[:1], torch.full((1, 8, 5), 0.5, dtype=torch.float64))
    assert (paper > model(x[:1])[0]).all(), "which begins at g(0) = 0.5"
    assert end.shape == (1, 8, 5)


@BOTH
def test_parameters_are_drawn_as_a_linear_layers(kind: type[MinGRU | MinLSTM]) -> None:
    torch.manual_seed(0)
    model = kind(25, 400, layers=2)
    rows = 800 if kind is MinGRU else 1200
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "weight_ih_l0": (rows, 25),
        "bias_l0": (rows,),
        "weight_ih_l1": (rows, 400),
        "bias_l1": (rows,),
    }
    for name, parameter in model.named_parameters():
        bound = 0.2 if name.endswith("0") else 0.05
        assert bound * 0.99 < parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_fewer_parameters_than_what_they_are_made_from() -> None:
    # 2 H I and 3 H I in place of 3 H (I + H) and 4 H (I + H): a third, and three eighths, where I = H
    for small, large, share in (("mingru", "gru", 1 / 3), ("minlstm", "lstm", 3 / 8)):
        weights = [
            sum(p.numel() for name, p in recurrent_layer(cell, 64, 64).named_parameters() if "weight" in name)  # type: ignore[arg-type]
            for cell in (small, large)
        ]
        assert weights[0] / weights[1] == share


@BOTH
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_does_not_round_slow_units_to_constants(kind: type[MinGRU | MinLSTM], autocast: bool) -> None:
    # 1 − z with z = σ(−7) is 1 in bf16, and h would pass its limit, the candidate's 1
    model = kind(1, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        bias = dict(model.named_parameters())["bias_l0"]
        bias.copy_(torch.tensor([-7.0, 0.5] if kind is MinGRU else [0.0, -7.0, 0.5]))
    enter = sigmoid(-7) if kind is MinGRU else sigmoid(-7) / (sigmoid(-7) + 0.5)
    model = model if autocast else model.bfloat16()
    x, state = torch.zeros(512, 1, 1, dtype=torch.float32 if autocast else torch.bfloat16), None
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output, state = model(x, state)
        assert output.dtype == x.dtype
        assert state.dtype == torch.float32
    assert state is not None
    assert state.item() == pytest.approx(1 - (1 - enter) ** 1024, rel=1e-4)
