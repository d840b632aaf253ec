"""Linear recurrent units against the paper's equations in complex numpy, their eigenvalues and normalisation."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from fptt_dist.config.schema.cells import lru
from fptt_dist.models.cells.lru import LRU


def layer(inputs: int = 3, hidden: int = 5, **keys: Any) -> LRU:
    torch.manual_seed(0)
    return LRU(inputs, hidden, **keys).double()


def reference(model: LRU, x: NDArray[Any], h: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The last block's outputs, and h (L, B, H) after the last step, one sequence and one step at a time."""
    p, n, h = {name: p.detach().numpy() for name, p in model.named_parameters()}, model.hidden_size, h.copy()
    outputs = np.zeros((*x.shape[:2], n))
    for s in range(x.shape[0]):
        for b in range(x.shape[1]):
            y = x[s, b]
            if "encoder.weight" in p:
                y = p["encoder.weight"] @ y + p["encoder.bias"]
            for i in range(model.num_layers):
                u = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * p[f"weight_norm_l{i}"] + p[f"bias_norm_l{i}"]
                eigenvalue = np.exp(-np.exp(p[f"nu_l{i}"]) + 1j * np.exp(p[f"theta_l{i}"]))
                inward = p[f"weight_ih_l{i}"][:n] + 1j * p[f"weight_ih_l{i}"][n:]
                outward = p[f"weight_ho_l{i}"][:, :n] + 1j * p[f"weight_ho_l{i}"][:, n:]
                h[i, b] = eigenvalue * h[i, b] + np.exp(p[f"gamma_l{i}"]) * (inward @ u)
                v = (outward @ h[i, b]).real + p[f"through_l{i}"] * u
                v = np.array([one * 0.5 * (1 + math.erf(one / math.sqrt(2))) for one in v])
                mixed = p[f"weight_glu_l{i}"] @ v + p[f"bias_glu_l{i}"]
                y = y + mixed[:n] / (1 + np.exp(-mixed[n:]))
            outputs[s, b] = y
    return outputs, h


@pytest.mark.parametrize(("layers", "steps", "inputs"), [(1, 40, 3), (2, 6, 3), (2, 6, 5)])
def test_the_papers_equations(layers: int, steps: int, inputs: int) -> None:
    model = layer(inputs, layers=layers)
    assert ("encoder.weight" in dict(model.named_parameters())) == (inputs != 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(steps, 2, inputs, dtype=torch.float64)
    state = torch.randn(layers, 2, 5, dtype=torch.float64), torch.randn(layers, 2, 5, dtype=torch.float64)
    output, (real, imaginary) = model(x, state)
    expected, end = reference(model, x.numpy(), state[0].numpy() + 1j * state[1].numpy())
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(real.detach().numpy(), np.real(end), rtol=0, atol=1e-12)
    np.testing.assert_allclose(imaginary.detach().numpy(), np.imag(end), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("smallest", "largest"), [(0.0, 0.99), (0.9, 0.999), (0.999, 0.9999)])  # the paper's
def test_eigenvalues_are_drawn_uniformly_on_the_ring(smallest: float, largest: float) -> None:
    torch.manual_seed(0)
    eigenvalues = LRU(1, 1000, smallest_radius=smallest, largest_radius=largest).eigenvalues().detach()
    square = eigenvalues.to(torch.complex128).abs().square()
    assert square.min() >= smallest**2 - 1e-6
    assert square.max() <= largest**2 + 1e-6
    area = (square - smallest**2) / (largest**2 - smallest**2)
    phase = eigenvalues.to(torch.complex128).angle().remainder(2 * math.pi) / (2 * math.pi)
    for uniform in (area, phase):
        distance = (uniform.sort().values - torch.linspace(0, 1, 1000, dtype=torch.float64)).abs().max()
        assert distance < 1.63 / math.sqrt(1000), "Kolmogorov and Smirnov at 1 %"
    assert abs(torch.corrcoef(torch.stack([area, phase]))[0, 1]) < 0.1


def test_parameters_are_drawn_as_in_the_paper() -> None:
    torch.manual_seed(0)
    model = LRU(100, 400, layers=2)
    drawn = {name: p.detach() for name, p in model.named_parameters()}
    deviations = {"weight_ih": 1 / math.sqrt(800), "weight_ho": 1 / 20, "through": 1.0, "weight_glu": 1 / 20 / 3**0.5}
    for name, deviation in deviations.items():
        for values in (drawn[f"{name}_l0"], drawn[f"{name}_l1"]):
            assert values.std().item() == pytest.approx(deviation, rel=0.1 if name == "through" else 0.02)
            assert abs(values.mean().item()) < 4 * deviation / math.sqrt(values.numel())
    assert 0.099 < drawn["encoder.weight"].abs().max() <= 0.1
    for i in range(2):
        normalisation = np.sqrt(1 - model.eigenvalues(i).detach().to(torch.complex128).abs().square().numpy())
        np.testing.assert_allclose(drawn[f"gamma_l{i}"].exp().numpy(), normalisation, rtol=1e-4)
        assert (drawn[f"weight_norm_l{i}"] == 1).all()
        assert (drawn[f"bias_norm_l{i}"] == 0).all()
    assert sum(values.numel() for values in drawn.values()) == 2 * (6 * 400**2 + 8 * 400) + 400 * 101
    assert list(model.buffers()) == []


def test_white_noise_is_amplified_as_published_and_normalised_at_first() -> None:
    # section 3.4: E|h|² = log((1 − r²)/(1 − R²)) / (R² − r²) E|Bu|²
    torch.manual_seed(0)
    model, x = LRU(128, 128, smallest_radius=0.5, largest_radius=0.99), torch.randn(400, 8, 128)
    amplified = math.log((1 - 0.5**2) / (1 - 0.99**2)) / (0.99**2 - 0.5**2)
    assert amplified == pytest.approx(4.97, abs=0.01)
    for expected in (1.0, amplified):
        with torch.no_grad():
            real, imaginary = model(x)[1]
        assert (real.square() + imaginary.square()).mean().item() == pytest.approx(expected, rel=0.15)
        torch.nn.init.zeros_(dict(model.named_parameters())["gamma_l0"])


def test_no_parameters_are_unstable() -> None:
    model = layer(hidden=1000)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        parameters["nu_l0"].uniform_(-20, 50)
        parameters["theta_l0"].uniform_(-50, 5)
    moduli = model.eigenvalues().abs()
    assert moduli.max() < 1
    moduli.sum().backward()
    assert all(p.grad.isfinite().all() for p in (parameters["nu_l0"], parameters["theta_l0"]) if p.grad is not None)
    with torch.no_grad():
        parameters["nu_l0"].fill_(-1e6)
    assert model.eigenvalues().abs().max() < 1 + 1e-15, "rounded to 1"


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_does_not_round_small_steps_away(autocast: bool) -> None:
    # λ = 1 to float32's last digit, so that h = steps/1024 here; a bf16 h would stop growing at 256/1024.
    model = LRU(2, 2)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        parameters["nu_l0"].fill_(-30.0)
        parameters["theta_l0"].fill_(-100.0)
        parameters["bias_norm_l0"].fill_(1.0)
        parameters["weight_ih_l0"][:2] = 2**-11
        parameters["weight_ho_l0"][:, :2] = torch.eye(2)
    model = model if autocast else model.bfloat16()
    x, state = torch.zeros(384, 1, 2, dtype=torch.float32 if autocast else torch.bfloat16), None
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output, state = model(x, state)
        assert output.dtype == x.dtype
        assert [part.dtype for part in state] == [torch.float32] * 2
    assert state is not None
    assert torch.equal(state[0], torch.full((1, 1, 2), 0.75))
    assert state[1].abs().max() < 1e-30
    model(x)[0].float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())


@pytest.mark.parametrize(("smallest", "largest"), [(0.9, 0.9), (0.9, 0.5), (-0.1, 0.5), (0.5, 1.0)])
def test_a_ring_that_is_none_is_refused(smallest: float, largest: float) -> None:
    with pytest.raises(ValueError, match=f"smallest_radius={smallest} and largest_radius={largest}"):
        LRU(3, 5, smallest_radius=smallest, largest_radius=largest)
    with pytest.raises(ValidationError, match=r"model.largest_radius=|greater than|less than"):
        lru.LRU(smallest_radius=smallest, largest_radius=largest)
