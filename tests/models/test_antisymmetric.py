"""The antisymmetric network against the paper's equations in numpy, and its stability."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fptt_dist.models.cells.antisymmetric import AntisymmetricRNN


def layer(inputs: int = 3, hidden: int = 5, **keys: Any) -> AntisymmetricRNN:
    torch.manual_seed(0)
    return AntisymmetricRNN(inputs, hidden, **keys).double()


def weights(model: AntisymmetricRNN, index: int) -> tuple[NDArray, NDArray, NDArray]:
    """V, M = W − Wᵀ − γI and b of a layer, M entry by entry."""
    values = {name: p.detach().numpy() for name, p in model.named_parameters()}
    size, numbers = model.hidden_size, iter(values[f"weight_hh_l{index}"])
    transition = np.zeros((size, size))
    for i in range(size):
        transition[i, i] = -model.diffusion
        for j in range(i + 1, size):
            transition[i, j] = next(numbers)
            transition[j, i] = -transition[i, j]
    return values[f"weight_ih_l{index}"], transition, values[f"bias_l{index}"]


def reference(model: AntisymmetricRNN, x: NDArray, state: NDArray) -> tuple[NDArray, NDArray]:
    """h of the last layer at every step, and of all layers after the last, one sequence and one step at a time."""
    size, step = model.hidden_size, model.step_size
    outputs = np.zeros((*x.shape[:2], size))
    h = state.copy()
    for s in range(x.shape[0]):
        for b in range(x.shape[1]):
            below = x[s, b]
            for index in range(model.num_layers):
                v, m, bias = weights(model, index)
                drive, old = v @ below + bias, h[index, b]
                if model.gated:
                    gate = 1 / (1 + np.exp(-(m @ old + drive[:size])))
                    h[index, b] = old + step * gate * np.tanh(m @ old + drive[size:])
                else:
                    h[index, b] = old + step * np.tanh(m @ old + drive)
                below = h[index, b]
            outputs[s, b] = below
    return outputs, h


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_papers_equations(layers: int, gated: bool) -> None:
    model = layer(layers=layers, gated=gated, diffusion=0.3, step_size=0.7)
    with torch.no_grad():
        for parameter in model.parameters():  # biases too
            parameter.add_(torch.randn_like(parameter))
    x, state = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(layers, 2, 5, dtype=torch.float64)
    output, end = model(x, state)
    expected, expected_end = reference(model, x.numpy(), state.numpy())
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(end.detach().numpy(), expected_end, rtol=0, atol=1e-12)


@pytest.mark.parametrize("diffusion", [0.0, 0.01, 2.0])
def test_no_eigenvalue_grows_or_shrinks_but_by_the_diffusion(diffusion: float) -> None:
    model = layer(hidden=40, diffusion=diffusion)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    transition = model.transition().detach().numpy()
    np.testing.assert_array_equal(transition + transition.T, -2 * diffusion * np.eye(40))
    eigenvalues = np.linalg.eigvals(transition)
    np.testing.assert_allclose(eigenvalues.real, -diffusion, rtol=0, atol=1e-10)
    assert np.abs(eigenvalues.imag).max() > 5


def test_gradients_neither_vanish_nor_explode_over_a_thousand_steps() -> None:
    def kept(model: torch.nn.Module, zeros: torch.Tensor) -> float:
        start = zeros.clone().requires_grad_()
        model(torch.randn(1000, 1, 3, dtype=torch.float64), start)[0][-1].sum().backward()
        assert start.grad is not None
        return start.grad.norm().item()

    zeros = torch.zeros(1, 1, 32, dtype=torch.float64)
    antisymmetric = kept(layer(hidden=32, gated=False, diffusion=0.001, step_size=0.01), zeros)
    plain = kept(torch.nn.RNN(3, 32).double(), zeros)
    assert 0.1 < antisymmetric / math.sqrt(32) < 10
    assert plain < 1e-20


def test_weights_are_drawn_as_in_the_paper() -> None:
    torch.manual_seed(0)
    model = AntisymmetricRNN(25, 400, layers=2)
    drawn = dict(model.named_parameters())
    deviations = {"weight_ih_l0": 1 / 5, "weight_hh_l0": 1 / 20, "weight_ih_l1": 1 / 20, "weight_hh_l1": 1 / 20}
    for name, deviation in deviations.items():
        assert drawn[name].std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(drawn[name].mean().item()) < 0.02 * deviation + 3 * deviation / math.sqrt(drawn[name].numel())
    assert drawn["bias_l0"].count_nonzero() == drawn["bias_l1"].count_nonzero() == 0


@pytest.mark.parametrize("gated", [True, False])
def test_only_the_strict_triangle_is_stored(gated: bool) -> None:
    model = AntisymmetricRNN(3, 6, layers=2, gated=gated)
    rows = 12 if gated else 6
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes == [(rows, 3), (15,), (rows,), (rows, 6), (15,), (rows,)]
    names = [f"{name}_l{layer}" for layer in (0, 1) for name in ("weight_ih", "weight_hh", "bias")]
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.buffers()) == []


def test_half_precision_does_not_round_small_steps_away() -> None:
    # tanh(100) = 1, so that h = ε·steps; a bf16 h would stop growing at 256 ε.
    model = AntisymmetricRNN(1, 2, gated=False, step_size=2**-10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        dict(model.named_parameters())["bias_l0"].fill_(100.0)
    model, state = model.bfloat16(), None
    for _ in range(2):
        output, state = model(torch.zeros(384, 1, 1, dtype=torch.bfloat16), state)
        assert output.dtype == torch.bfloat16
        assert state.dtype == torch.float32
    assert state is not None
    assert torch.equal(state, torch.full((1, 1, 2), 0.75))


def test_elements_are_dropped_between_layers_alone() -> None:
    x = torch.randn(50, 4, 3, dtype=torch.float64)
    one = layer(dropout=0.5)
    assert torch.equal(one(x)[0], one(x)[0])
    two = layer(layers=2, dropout=0.5)
    assert not torch.equal(two(x)[0], two(x)[0])
    first, second = (two(x)[1] for _ in range(2))
    assert torch.equal(first[0], second[0]), "what enters the first layer is whole"
    two.eval()
    assert torch.equal(two(x)[0], layer(layers=2)(x)[0])


def test_a_single_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden=1 units is 0"):
        AntisymmetricRNN(3, 1)
