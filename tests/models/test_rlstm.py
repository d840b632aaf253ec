"""The LSTM that reconstructs its inputs: the loss by hand, what it teaches, and the plain LSTM where it must be one."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.algorithm import detach
from fptt_dist.models import Network, penalty_of, recurrent_layer
from fptt_dist.models.cells.lstm import LSTM
from fptt_dist.models.cells.rlstm import ReconstructingLSTM
from tests.models.networks import carried


def some_layer(**keys: Any) -> ReconstructingLSTM:
    torch.manual_seed(0)
    return ReconstructingLSTM(3, 5, **keys).double()


def test_the_penalty_by_hand(subtests: pytest.Subtests) -> None:
    for steps, layers in product((1, 4, 10), (1, 2)):
        with subtests.test(steps=steps, layers=layers):
            model = some_layer(num_layers=layers, reconstruction=0.7, reconstruction_steps=4)
            x, plain = torch.randn(steps, 2, 3, dtype=torch.float64), nn.LSTM(3, 5, layers).double()
            plain.load_state_dict({name: p for name, p in model.state_dict().items() if name in plain.state_dict()})
            start = (torch.randn(layers, 2, 5, dtype=torch.float64), torch.randn(layers, 2, 5, dtype=torch.float64))
            output, state = model(x, start)
            w_ih, w_hh, b_ih, b_hh = (p for p in model.decoder.parameters())
            error = torch.zeros((), dtype=torch.float64)
            for first in range(0, steps, 4):
                last = min(first + 4, steps)
                h, c = (part[-1] for part in plain(x[:last], start)[1])
                for t in range(first, last):
                    read = x[t - 1] if t > first else torch.zeros_like(x[0])
                    i, f, g, o = (read @ w_ih.T + b_ih + h @ w_hh.T + b_hh).split(5, dim=1)
                    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                    h = torch.sigmoid(o) * torch.tanh(c)
                    error = error + (h @ model.guess.weight.T + model.guess.bias - x[t]).square().sum()
            expected, end = plain(x, start)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
            for one, other in zip(carried(state).hidden, end, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
            penalty = penalty_of(state)
            assert penalty is not None
            torch.testing.assert_close(penalty, 0.7 * error / (steps * 2 * 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 9])
def test_evaluated_it_is_the_lstm_to_the_bit(steps: int) -> None:
    model, plain = some_layer(num_layers=2).eval(), LSTM(3, 5, 2).double()
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if name in plain.state_dict()})
    x = torch.randn(steps, 4, 3, dtype=torch.float64)
    output, state = model(x)
    expected, end = plain(x)
    assert torch.equal(output, expected)
    assert all(torch.equal(*parts) for parts in zip(state, end, strict=True))
    after, _ = model(x, model.train()(x)[1])  # what a window in training handed on
    assert torch.isfinite(after).all()


def test_without_weight_the_loss_teaches_nothing() -> None:
    model, x = some_layer(reconstruction=0.0), torch.randn(6, 4, 3, dtype=torch.float64)
    penalty = penalty_of(model(x)[1])
    assert penalty is not None
    assert penalty.item() == 0
    penalty.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_what_has_to_be_reconstructed_is_remembered() -> None:
    """After training on the penalty alone, the state tells the input of four steps ago far better."""

    def told(model: Network) -> float:
        x = torch.randn(5, 512, 1)
        state = model.recurrent.eval()(x)[1]
        # In float64: some units hardly differ, and in float32 rounding decides what the least squares are.
        features = torch.cat([*(part[-1] for part in state), torch.ones(512, 1)], dim=1).detach().double()
        target = x[0].double()
        solved = torch.linalg.lstsq(features, target).solution
        return ((features @ solved - target).square().mean() / target.square().mean()).item()

    torch.manual_seed(0)
    layer = recurrent_layer("rlstm", 1, 16, reconstruction_steps=5)
    model = Network(layer, 16, 1)
    before = told(model)
    optimizer, state = torch.optim.Adam(model.parameters(), lr=1e-2), None
    for _ in range(300):
        _, state = model.train()(torch.randn(5, 64, 1), detach(state))
        penalty: Tensor | None = penalty_of(state)
        assert penalty is not None
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
    assert told(model) < 0.7 * before
