"""One battery over every cell, the read-out and chrono initialisation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.algorithm import detach, window_slices
from fptt_dist.models import CellName, Network, chrono_initialisation, recurrent_layer

CELLS: list[CellName] = ["lstm", "gru", "rnn"]


def network(cell: CellName, layers: int = 1, **kwargs: Any) -> Network:
    torch.manual_seed(0)
    return Network(recurrent_layer(cell, 3, 5, layers=layers), 5, 2, **kwargs)


def tensors(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_shapes_and_state(cell: CellName, layers: int) -> None:
    output, state = network(cell, layers)(torch.randn(7, 4, 3))
    assert output.shape == (7, 4, 2)
    assert all(part.shape == (layers, 4, 5) and part.requires_grad for part in tensors(state))
    assert not any(part.requires_grad for part in tensors(detach(state)))


@pytest.mark.parametrize("cell", CELLS)
def test_windows_with_the_state_handed_on_equal_one_pass(cell: CellName) -> None:
    model, x = network(cell).double(), torch.randn(7, 4, 3, dtype=torch.float64)
    whole, _ = model(x)
    state, parts = None, []
    for part in window_slices(7, 3):
        y, state = model(x[part], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_no_state_is_zeros(cell: CellName) -> None:
    model, x = network(cell), torch.randn(3, 4, 3)
    zeros = torch.zeros(1, 4, 5)
    assert torch.equal(model(x)[0], model(x, (zeros, zeros) if cell == "lstm" else zeros)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_sequences_of_a_batch_do_not_see_each_other(cell: CellName) -> None:
    model, x = network(cell).double(), torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    model(x)[0][:, 1].sum().backward()
    assert x.grad is not None
    assert x.grad[:, 1].abs().sum() > 0
    assert x.grad[:, [0, 2, 3]].abs().sum() == 0


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_in_float64(cell: CellName) -> None:
    model, x = network(cell).double(), torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: model(value)[0], (x,))


@pytest.mark.parametrize("cell", CELLS)
def test_the_last_step_alone_is_read(cell: CellName) -> None:
    x = torch.randn(6, 4, 3)
    assert torch.equal(network(cell, reads="last")(x)[0], network(cell)(x)[0][-1:])


def test_parameters_are_counted_the_papers_way() -> None:
    # Kag & Saligrama 2021: 66K (one input) and 67K (three) for LSTM-128, 51K for GRU-128 with three inputs.
    rows: list[tuple[CellName, int, int]] = [("lstm", 1, 67072), ("lstm", 3, 68096), ("gru", 3, 51072)]
    for cell, inputs, expected in rows:
        counts = Network(recurrent_layer(cell, inputs, 128), 128, 10).parameter_counts()
        assert counts == {"recurrent": expected, "total": expected + 128 * 10 + 10}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chrono_biases_remember_for_the_sequences_length(cell: CellName) -> None:
    torch.manual_seed(0)
    layer = recurrent_layer(cell, 2, 4000)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    chrono_initialisation(layer, 500)
    after = {name: p.detach() for name, p in layer.named_parameters()}
    gate = (after["bias_ih_l0"] + after["bias_hh_l0"]).view(-1, 4000)
    memory = gate[1].exp()
    assert 1.0 <= memory.min() < 2.0
    assert 498.0 < memory.max() <= 499.0
    assert memory.mean() == pytest.approx(250.0, rel=0.05), "uniform over 1 … T-1"
    if cell == "lstm":
        assert torch.equal(gate[0], -gate[1])
    assert gate[2:].abs().sum() == 0
    assert all(torch.equal(after[name], before[name]) for name in ("weight_ih_l0", "weight_hh_l0"))


def test_chrono_makes_an_lstm_forget_slowly() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(1, 64)
    kept = []
    for chrono in (False, True):
        if chrono:
            chrono_initialisation(layer, 400)
        state = (torch.zeros(1, 1, 64), torch.ones(1, 1, 64))
        kept.append(layer(torch.zeros(100, 1, 1), state)[1][1].detach().abs().mean().item())
    assert kept[1] > 5 * kept[0]


def test_chrono_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ValueError, match="RNN has none"):
        chrono_initialisation(recurrent_layer("rnn", 2, 4), 100)
    with pytest.raises(ValueError, match="length=2"):
        chrono_initialisation(recurrent_layer("lstm", 2, 4), 2)
