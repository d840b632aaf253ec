"""Trellis networks against a loop over steps and layers, and how far back they see."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.models.cells.trellis import TrellisNet
from tests.models.test_spiking import assert_same_with_gradients


def some_trellis(layers: int) -> TrellisNet:
    torch.manual_seed(0)
    return TrellisNet(3, 5, layers=layers).double()


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_papers_equations(layers: int) -> None:
    model = some_trellis(layers)

    def reference(x: Tensor) -> Any:
        (w_1, w_2), (u_1, u_2), bias = (
            model.get_parameter("weight_ih_l0").split(3, dim=1),
            model.get_parameter("weight_hh_l0").split(5, dim=1),
            model.get_parameter("bias_l0"),
        )
        nothing = torch.zeros(4, 5, dtype=torch.float64)
        z, c = ({(layer, -1): nothing for layer in range(layers + 1)} for _ in range(2))
        for t in range(len(x)):
            z[0, t], c[0, t] = nothing, nothing
            before = x[t - 1] if t > 0 else torch.zeros_like(x[0])
            for layer in range(layers):
                sums = before @ w_1.T + x[t] @ w_2.T + z[layer, t - 1] @ u_1.T + z[layer, t] @ u_2.T + bias
                i, f, g, o = sums.split(5, dim=1)
                c[layer + 1, t] = torch.sigmoid(f) * c[layer, t - 1] + torch.sigmoid(i) * torch.tanh(g)
                z[layer + 1, t] = torch.sigmoid(o) * torch.tanh(c[layer + 1, t])
        last = len(x) - 1
        ends = [torch.stack([part[layer + 1, last] for layer in range(layers)]) for part in (z, c)]
        return torch.stack([z[layers, t] for t in range(len(x))]), [x[-1:], *ends]

    if layers > 1:
        assert_same_with_gradients(model, reference, steps=7)
        return
    x = torch.randn(7, 4, 3, dtype=torch.float64)  # one layer reads no z: U has no gradient
    torch.testing.assert_close(model(x)[0], reference(x)[0], rtol=0, atol=1e-12)


def test_a_convolution_of_torchs_gives_the_same_sums() -> None:
    model, x = some_trellis(1), torch.randn(9, 4, 3, dtype=torch.float64)
    conv = nn.Conv1d(3, 20, 2).double()
    with torch.no_grad():
        conv.weight.copy_(torch.stack(model.get_parameter("weight_ih_l0").split(3, dim=1), dim=-1))
        conv.bias.copy_(model.get_parameter("bias_l0"))  # pyright: ignore[reportOptionalMemberAccess]
    padded = torch.cat((torch.zeros(1, 4, 3, dtype=torch.float64), x))
    i, _, g, o = conv(padded.permute(1, 2, 0)).permute(2, 0, 1).split(5, dim=-1)
    expected = torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g))
    torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_an_output_sees_as_many_steps_back_as_there_are_layers(layers: int) -> None:
    x = torch.randn(10, 4, 3, dtype=torch.float64, requires_grad=True)
    some_trellis(layers)(x)[0][-1].sum().backward()
    assert x.grad is not None
    seen = [bool(step.abs().max() > 0) for step in x.grad]
    assert seen == [step >= 9 - layers for step in range(10)]


def test_all_layers_have_the_same_parameters() -> None:
    counts = {layers: sum(p.numel() for p in some_trellis(layers).parameters()) for layers in (1, 8)}
    assert counts[1] == counts[8] == 20 * (6 + 10 + 1)


def test_the_state_shares_no_memory_with_the_inputs() -> None:
    model, x = some_trellis(2), torch.randn(4, 4, 3, dtype=torch.float64)
    kept = model(x)[1][0]
    before = kept.clone()
    x.zero_()
    assert torch.equal(kept, before)
