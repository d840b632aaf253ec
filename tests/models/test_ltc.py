"""Liquid time-constant neurons against a literal loop over the paper's equations, and that they learn to add."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.algorithm import detach, window_slices
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.models.cells.ltc import LTC
from fptt_dist.tasks.adding import Adding
from tests.models.test_spiking import assert_same_with_gradients, reference_spike, some_layer


@pytest.mark.parametrize("layers", [1, 2])
def test_the_papers_equations(layers: int) -> None:
    model = some_layer(LTC, layers=layers, threshold=0.2, adaptation=1.5)

    def reference(x: Tensor) -> Any:
        zeros = torch.zeros(4, 5, dtype=torch.float64)
        states, outputs = [(zeros, zeros, zeros)] * layers, []
        for below in x:
            for layer in range(layers):
                inward, recurrent, bias, of_input, of_membrane, of_threshold, tau = model.parameters_of(layer)
                s, u, a = states[layer]
                current = torch.cat([below, s], dim=1) @ torch.cat([inward, recurrent], dim=1).T + bias
                of_u = torch.cat([of_input[:5], of_membrane], dim=1)
                of_a = torch.cat([of_input[5:], of_threshold], dim=1)
                tau_u = torch.sigmoid(torch.cat([current, u], dim=1) @ of_u.T + tau[:5])
                tau_a = torch.sigmoid(torch.cat([current, a], dim=1) @ of_a.T + tau[5:])
                a = tau_a * a + (1 - tau_a) * s
                u = u + tau_u * (-u + current)
                s = reference_spike(u - (0.2 + 1.5 * a))
                u = (1 - s) * u
                states[layer], below = (s, u, a), s
            outputs.append(states[-1][1])
        return torch.stack(outputs), [torch.stack(parts) for parts in zip(*states, strict=True)]

    assert_same_with_gradients(model, reference)


def test_parameters_are_those_of_three_linear_layers() -> None:
    torch.manual_seed(0)
    model = LTC(56, 200)
    linear = nn.Linear(256, 200), nn.Linear(400, 200), nn.Linear(400, 200)
    counts = [sum(p.numel() for p in module.parameters()) for module in linear]
    assert sum(p.numel() for p in model.parameters()) == sum(counts)
    for name, parameter in model.named_parameters():
        bound = 1 / math.sqrt(256 if name in ("weight_ih_l0", "weight_hh_l0", "bias_l0") else 400)
        assert parameter.abs().max().item() == pytest.approx(bound, rel=0.03)
        assert parameter.abs().max().item() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_a_spike_resets_the_membrane_to_zero_and_raises_the_threshold() -> None:
    model = LTC(1, 1, threshold=0.5, adaptation=2.0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("bias_l0").fill_(1.2)  # and every τ is ½
    output, (s, u, a) = model(torch.zeros(3, 1, 1, dtype=torch.float64))
    # u = 0.6 > 0.5 spikes; then a = 0.5, so that 0.6 and 0.9 stay below 1.5 and, a halved, 1.0.
    torch.testing.assert_close(output.flatten(), torch.tensor([0.0, 0.6, 0.9], dtype=torch.float64), rtol=0, atol=1e-15)
    assert [part.item() for part in (s, u, a)] == pytest.approx([0.0, 0.9, 0.25])


@pytest.mark.slow
def test_membranes_learn_to_add() -> None:
    torch.manual_seed(0)
    task, model = Adding(length=40), Network(recurrent_layer("ltc", 2, 64), 64, 1, output_steps="last")
    optimizer, errors = torch.optim.Adam(model.parameters(), lr=5e-3), []
    for index in range(300):
        batch, state = task.generate([0, index], 64), None
        for part in window_slices(40, 4):
            output, state = model(batch.inputs[part], detach(state))
            loss = (output[-1] - batch.targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            errors.append(loss.item())
    assert sum(errors[-77::4]) / 20 < 0.08, "half of what guessing gets"
