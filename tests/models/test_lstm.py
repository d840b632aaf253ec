"""Windows of one step against torch's own LSTM."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.models.cells.lstm import LSTM, MOST_SEQUENCES


def both(layers: int, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> tuple[LSTM, nn.LSTM]:
    torch.manual_seed(1)
    own = LSTM(3, 5, num_layers=layers, dropout=dropout, dtype=dtype)
    reference = nn.LSTM(3, 5, num_layers=layers, dropout=dropout, dtype=dtype)
    reference.load_state_dict(own.state_dict())
    return own, reference


def outcome(layer: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """Outputs, end, and the gradient of everything in them with respect to x, the state and the weights."""
    leaves = [x.clone().requires_grad_(), *(() if state is None else (s.clone().requires_grad_() for s in state))]
    output, (h, c) = layer(leaves[0], None if state is None else tuple(leaves[1:]))
    total = (output * output).sum() + (h * 1.3).sum() + c.pow(3).sum()
    return [output, h, c, *torch.autograd.grad(total, [*leaves, *layer.parameters()])]


def test_one_step_is_torchs(subtests: pytest.Subtests) -> None:
    for given, layers, batch in product((True, False), (1, 3), (1, 4, MOST_SEQUENCES, MOST_SEQUENCES + 1)):
        with subtests.test(given=given, layers=layers, batch=batch):
            own, reference = both(layers)
            x = torch.randn(1, batch, 3, dtype=torch.float64)
            state = (torch.randn(layers, batch, 5).double(), torch.randn(layers, batch, 5).double()) if given else None
            torch.testing.assert_close(outcome(own, x, state), outcome(reference, x, state), rtol=1e-12, atol=1e-13)


def test_step_by_step_is_the_sequence() -> None:
    own, reference = both(2, dtype=torch.float32)
    x = torch.randn(30, 4, 3)
    whole, end = reference(x)
    outputs, state = [], None
    for t in range(30):
        y, state = own(x[t : t + 1], state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, end, rtol=1e-5, atol=1e-6)


def test_dropout_between_layers_in_training_alone() -> None:
    own, reference = both(2, dropout=0.5)
    x = torch.randn(1, 50, 3, dtype=torch.float64)
    below = nn.LSTM(3, 5, dtype=torch.float64)
    below.load_state_dict({name: p for name, p in own.state_dict().items() if name.endswith("l0")})
    assert not torch.equal(own(x)[0], own(x)[0])
    torch.testing.assert_close(own(x)[1][0][0], below(x)[1][0][0])
    own.eval()
    reference.eval()
    torch.testing.assert_close(own(x), reference(x), rtol=1e-12, atol=1e-13)


def test_longer_windows_are_torchs_own() -> None:
    own, reference = both(2, dtype=torch.float32)
    x = torch.randn(2, 4, 3)
    assert torch.equal(own(x)[0], reference(x)[0])


def test_autocast_is_left_to_torch() -> None:
    own, reference = both(1, dtype=torch.float32)
    x = torch.randn(1, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert own(x)[0].dtype == reference(x)[0].dtype
        assert torch.equal(own(x)[0], reference(x)[0])
