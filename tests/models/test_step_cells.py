"""Cells that are stepped through, against literal loops over their papers' equations and against other libraries."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchrecurrent
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fptt_dist.algorithm import detach, window_slices
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.models.cells.cornn import CoRNN
from fptt_dist.models.cells.fast_grnn import FastGRNN
from fptt_dist.models.cells.incremental import IncrementalRNN
from fptt_dist.models.cells.indrnn import IndRNN
from fptt_dist.models.cells.layer_norm_lstm import LayerNormLSTM
from fptt_dist.models.cells.lem import LEM
from fptt_dist.models.cells.orthogonal import OrthogonalRNN
from fptt_dist.models.cells.ur_lstm import URLSTM
from fptt_dist.tasks.adding import Adding
from tests.models.test_spiking import assert_same_with_gradients

State = tuple[Tensor, ...]


def some_layer(kind: type[Any], inputs: int = 3, hidden: int = 6, **keys: Any) -> Any:
    """A layer in float64 with parameters that are nowhere 0 or 1."""
    torch.manual_seed(0)
    model = kind(inputs, hidden, **keys).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            parameter.mul_(0.3 if "weight_ih" in name else 1.0)  # a sum that grows would blow up what is rounded
    return model


def fast_grnn(p: dict[str, Tensor], x: Tensor, state: State) -> State:
    (h,) = state
    zeta, nu = 1 / (1 + torch.exp(-p["scale"]))
    b_z, b_h = p["bias"][:6], p["bias"][6:]
    z = torch.sigmoid(x @ p["weight_ih"].T + h @ p["weight_hh"].T + b_z)
    candidate = torch.tanh(x @ p["weight_ih"].T + h @ p["weight_hh"].T + b_h)
    return ((zeta * (1 - z) + nu) * candidate + z * h,)


def incremental(p: dict[str, Tensor], x: Tensor, state: State) -> State:
    (h,) = state
    g = torch.zeros_like(h)
    for eta in p["rates"]:
        g = g + eta * (torch.tanh((g + h) @ p["weight_hh"].T + x @ p["weight_ih"].T + p["bias"]) - p["leak"] * (g + h))
    return (g,)


def orthogonal(p: dict[str, Tensor], x: Tensor, state: State) -> State:
    (h,) = state
    a = torch.zeros(6, 6, dtype=h.dtype)
    row, column = torch.triu_indices(6, 6, offset=1)
    a[row, column] = p["weight_hh"]
    a[column, row] = -p["weight_hh"]
    q, power = torch.eye(6, dtype=h.dtype), torch.eye(6, dtype=h.dtype)
    for n in range(1, 60):
        power = power @ a / n
        q = q + power
    s = x @ p["weight_ih"].T + h @ q.T
    return (torch.where(s.abs() + p["bias"] >= 0, torch.where(s > 0, s + p["bias"], s - p["bias"]), 0.0),)


def lem(p: dict[str, Tensor], x: Tensor, state: State) -> State:
    y, z = state
    v_1, v_2, v_z, v_y = p["weight_ih"].split(6)
    b_1, b_2, b_z, b_y = p["bias"].split(6)
    w_1, w_2, w_z = p["weight_hh"].split(6)
    step_1 = 0.5 * torch.sigmoid(y @ w_1.T + x @ v_1.T + b_1)
    step_2 = 0.5 * torch.sigmoid(y @ w_2.T + x @ v_2.T + b_2)
    z = (1 - step_1) * z + step_1 * torch.tanh(y @ w_z.T + x @ v_z.T + b_z)
    return (1 - step_2) * y + step_2 * torch.tanh(z @ p["weight_zh"].T + x @ v_y.T + b_y), z


def cornn(p: dict[str, Tensor], x: Tensor, state: State) -> State:
    y, z = state
    w, other = p["weight_hh"].split(6, dim=1)
    z = z + 0.1 * (torch.tanh(y @ w.T + z @ other.T + x @ p["weight_ih"].T + p["bias"]) - 2.0 * y - 3.0 * z)
    return y + 0.1 * z, z


def ur_lstm(p: dict[str, Tensor], x: Tensor, state: State) -> State:
    h, c = state
    sums = x @ p["weight_ih"].T + h @ p["weight_hh"].T + p["bias"]
    f, r, o = (torch.sigmoid(sums[:, n : n + 6]) for n in (0, 6, 18))
    g = r * (1 - (1 - f) ** 2) + (1 - r) * f**2
    c = g * c + (1 - g) * torch.tanh(sums[:, 12:18])
    return o * torch.tanh(c), c


def normal(v: Tensor) -> Tensor:
    centred = v - v.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def layer_norm_lstm(p: dict[str, Tensor], x: Tensor, state: State) -> State:
    h, c = state
    sums = p["scale_hh"] * normal(h @ p["weight_hh"].T) + p["scale_ih"] * normal(x @ p["weight_ih"].T) + p["bias"]
    i, f, g, o = sums.split(6, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(p["scale_c"] * normal(c) + p["bias_c"]), c


CELLS: list[tuple[type[Any], dict[str, Any], Callable[..., State], int]] = [
    (FastGRNN, {}, fast_grnn, 1),
    (IncrementalRNN, {"iterations": 3}, incremental, 1),
    (OrthogonalRNN, {}, orthogonal, 1),
    (LEM, {"step_size": 0.5}, lem, 2),
    (CoRNN, {"step_size": 0.1, "frequency": 2.0, "damping": 3.0}, cornn, 2),
    (URLSTM, {}, ur_lstm, 2),
    (LayerNormLSTM, {}, layer_norm_lstm, 2),
]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "options", "step", "parts"), CELLS, ids=[row[0].__name__ for row in CELLS])
def test_the_papers_equations(
    kind: type[Any], options: dict[str, Any], step: Callable[..., State], parts: int, layers: int
) -> None:
    model = some_layer(kind, layers=layers, **options)

    def reference(x: Tensor) -> Any:
        states, outputs = [(torch.zeros(4, 6, dtype=torch.float64),) * parts] * layers, []
        for below in x:
            for layer in range(layers):
                weights = dict(zip(model.shapes(3), model.parameters_of(layer), strict=True))
                states[layer] = step(weights, below, states[layer])
                below = states[layer][0]
            outputs.append(below)
        ends = [torch.stack(tensors) for tensors in zip(*states, strict=True)]
        return torch.stack(outputs), ends

    assert_same_with_gradients(model, reference, steps=7)


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_indrnn_is_the_papers_equation_with_layers_normalised(layers: int) -> None:
    model = some_layer(IndRNN, layers=layers, length=20)

    def reference(x: Tensor) -> Any:
        states = [torch.zeros(4, 6, dtype=torch.float64)] * layers
        outputs = []
        for below in x:
            for layer in range(layers):
                w, u, b = model.parameters_of(layer)
                read = below if layer == 0 else normal(below)
                largest = 2 ** (1 / 20)
                u = u + (u.clip(-largest, largest) - u).detach()
                states[layer] = below = torch.relu(read @ w.T + u * states[layer] + b)
            outputs.append(below)
        return torch.stack(outputs), torch.stack(states)

    assert_same_with_gradients(model, reference, steps=7)


def copy_into(cell: nn.Module, **values: Tensor) -> Any:
    """The values into parameters of these names; other biases are 0."""
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name in values:
                parameter.copy_(values[name].view_as(parameter))
            else:
                assert "bias" in name
                parameter.zero_()
    return cell


def run_cell(cell: Any, x: Tensor) -> Tensor:
    state, outputs = None, []
    for x_t in x:
        state = cell(x_t, state)
        outputs.append(state if isinstance(state, Tensor) else state[0])
    return torch.stack(outputs)


def test_fast_grnn_is_torchrecurrents() -> None:
    model, x = some_layer(FastGRNN), torch.randn(9, 4, 3, dtype=torch.float64)
    w, u, b, scale = model.parameters_of(0)
    cell = torchrecurrent.FastGRNNCell(3, 6, nonlinearity="sigmoid").double()
    copy_into(cell, weight_ih=w, weight_hh=u, bias_ih=b, zeta=scale[0], nu=scale[1])
    torch.testing.assert_close(model(x)[0], run_cell(cell, x), rtol=0, atol=1e-12)


def test_oscillators_are_torchrecurrents() -> None:
    model, x = some_layer(CoRNN), torch.randn(9, 4, 3, dtype=torch.float64)
    v, b, both = model.parameters_of(0)
    w, other = both.split(6, dim=1)
    cell = torchrecurrent.coRNNCell(3, 6, dt=0.042, gamma=2.7, epsilon=4.7).double()
    copy_into(cell, weight_ih=v, bias_ih=b, weight_hh=w, weight_ch=other)
    torch.testing.assert_close(model(x)[0], run_cell(cell, x), rtol=0, atol=1e-12)


def test_indrnn_is_torchrecurrents() -> None:
    model, x = some_layer(IndRNN, length=4), torch.randn(9, 4, 3, dtype=torch.float64)
    w, u, b = model.parameters_of(0)
    cell = torchrecurrent.IndRNNCell(3, 6, nonlinearity="relu").double()
    bound = 2 ** (1 / 4)
    copy_into(cell, weight_ih=w, vector_u=u.clamp(-bound, bound), bias_ih=b)
    torch.testing.assert_close(model(x)[0], run_cell(cell, x), rtol=0, atol=1e-12)


def test_the_orthogonal_matrix_is_torchs_parametrization() -> None:
    model = some_layer(OrthogonalRNN, hidden=8)
    linear = parametrizations.orthogonal(
        nn.Linear(8, 8, bias=False).double(), orthogonal_map="matrix_exp", use_trivialization=False
    )
    row, column = torch.triu_indices(8, 8, offset=1)
    with torch.no_grad():
        original: Any = linear.get_submodule("parametrizations.weight").get_parameter("original")
        original[column, row] = -model.parameters_of(0)[1]  # its lower triangle
    q = model.transition()
    torch.testing.assert_close(q, linear.weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(q @ q.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-13)
    turned = torch.randn(8, dtype=torch.float64)
    assert (q @ turned).norm().item() == pytest.approx(turned.norm().item(), abs=1e-12)


def test_an_orthogonal_network_begins_with_rotations_in_planes() -> None:
    torch.manual_seed(0)
    model = OrthogonalRNN(3, 65)
    q = model.transition()
    angles = []
    for n in range(0, 64, 2):
        angles.append(math.atan2(q[n + 1, n].item(), q[n, n].item()))
        q.data[n : n + 2, n : n + 2] = 0
    assert q.flatten()[:-1].abs().max() == 0, "nothing but planes"
    assert q[64, 64] == 1
    tangents = [math.atan(angle) for angle in angles]  # φ/2 of tan(½φ)
    assert 0 <= min(tangents) < 0.1
    assert 0.7 < max(tangents) <= math.pi / 4
    assert model.get_parameter("bias_l0").abs().max() <= 0.01


@pytest.mark.parametrize("length", [None, 100])
def test_indrnns_units_forget_at_most_half_in_the_last_layer(length: int | None) -> None:
    torch.manual_seed(0)
    model, bound = IndRNN(3, 500, layers=3, length=length), 1.0 if length is None else 2**0.01
    for layer in range(3):
        u = model.parameters_of(layer)[1]
        assert u.max().item() == pytest.approx(bound, abs=0.02)
        assert u.max() <= bound
        low = 2**-0.01 if layer == 2 and length else 0.0
        assert low <= u.min() < low + 0.02
    assert model.bound ** (length or 1) == pytest.approx(2.0 if length else 1.0)


def test_indrnns_unit_past_its_bound_counts_as_the_bound_and_learns_to_come_back() -> None:
    model = IndRNN(1, 1, length=10).double()
    with torch.no_grad():
        for name, value in (("weight_ih_l0", 1.0), ("weight_hh_l0", 3.0), ("bias_l0", 0.0)):
            model.get_parameter(name).fill_(value)
    y, _ = model(torch.tensor([[[1.0]], [[0.0]], [[0.0]]], dtype=torch.float64))
    bound = 2**0.1
    assert y.flatten().tolist() == pytest.approx([1.0, bound, bound**2], abs=1e-15)
    y[-1].sum().backward()
    gradient = model.get_parameter("weight_hh_l0").grad
    assert gradient is not None
    assert gradient.item() == pytest.approx(2 * bound)


def test_ur_gates_begin_uniform() -> None:
    torch.manual_seed(0)
    model = URLSTM(3, 4000)
    forget, refine = model.get_parameter("bias_l0")[:8000].split(4000)
    assert torch.equal(refine, -forget)
    shares = torch.sigmoid(forget).sort().values
    uniform = torch.linspace(1 / 4000, 1 - 1 / 4000, 4000)
    assert (shares - uniform).abs().max() < 0.03, "Kolmogorov & Smirnov at one in a thousand"
    torch.testing.assert_close(torch.sigmoid(forget + refine), torch.full((4000,), 0.5))


def test_what_others_begin_with() -> None:
    torch.manual_seed(0)
    fast = dict(FastGRNN(50, 400).named_parameters())
    assert fast["weight_hh_l0"].std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(fast["bias_l0"], torch.ones(800))
    assert fast["scale_l0"].tolist() == [1.0, -4.0]
    slow = dict(IncrementalRNN(3, 4, iterations=4).named_parameters())
    assert slow["rates_l0"].tolist() == [1.0] * 4
    assert slow["leak_l0"].tolist() == [1.0]
    norm = dict(LayerNormLSTM(3, 4).named_parameters())
    assert norm["bias_l0"].tolist() == [0.0] * 16
    assert norm["scale_c_l0"].tolist() == [1.0] * 4
    for kind, bound in ((LEM, 1 / 20), (CoRNN, 1 / math.sqrt(100 + 800))):
        for parameter in kind(100, 400).parameters():
            assert 0.98 * bound < parameter.abs().max() <= bound


def test_one_unit_is_refused_where_it_is_too_few() -> None:
    with pytest.raises(ValueError, match="hidden=1 units turns nothing: it needs at least 2"):
        OrthogonalRNN(3, 1)
    with pytest.raises(ValueError, match="need hidden >= 2, not hidden=1"):
        URLSTM(3, 1)


def test_oscillators_stay_bounded_over_a_long_sequence() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        y, _ = CoRNN(1, 20)(torch.randn(5000, 2, 1))
    assert y.abs().max() < 1 / 2.7 * 1.5, "tanh / γ, and what swings past it"


def test_long_memory_moves_no_further_than_tanh() -> None:
    torch.manual_seed(0)
    y, (_, z) = some_layer(LEM)(5 * torch.randn(500, 2, 3, dtype=torch.float64))
    assert y.abs().max() <= 1
    assert z.abs().max() <= 1


@pytest.mark.slow
def test_six_independent_layers_learn_to_add() -> None:
    torch.manual_seed(0)
    layer = recurrent_layer("indrnn", 2, 32, layers=6, length=40)
    task, model = Adding(length=40), Network(layer, 32, 1, output_steps="last")
    optimizer, errors = torch.optim.Adam(model.parameters(), lr=2e-3), []
    for index in range(400):
        batch, state = task.generate([0, index], 64), None
        for part in window_slices(40, 2):
            output, state = model(batch.inputs[part], detach(state))
            loss = (output[-1] - batch.targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            errors.append(loss.item())
    assert sum(errors[-39::2]) / 20 < 0.05, "three tenths of what guessing gets"
