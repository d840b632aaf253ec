"""A user's network: what it is called with, what is refused, and in which words; options of a layer and a network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.models import Sizes, UserNetwork, check_module, make_layer, make_network
from fptt_dist.user_code import UserCodeError

HERE = Path(__file__).name


class Running(nn.Module):
    """A running sum in front of a linear layer; of ids, of their embeddings."""

    def __init__(self, inputs: int, outputs: int, *, width: int, text: bool = False) -> None:
        super().__init__()
        self.first = nn.Embedding(inputs, width) if text else nn.Linear(inputs, width)
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        sums = self.first(x).cumsum(0) + (0.0 if state is None else state["sum"])
        return self.last(sums), {"sum": sums[-1], "none": [None]}


class Fixed(nn.Module):
    """The right outputs, changed by `outputs_of` of a subclass."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.changed(self.linear(x)), None

    def changed(self, y: Tensor) -> Tensor:
        return y


class OfLastStep(Fixed):
    def changed(self, y: Tensor) -> Tensor:
        return y[-1]


class Squeezed(Fixed):
    def changed(self, y: Tensor) -> Tensor:
        return y.squeeze(1)


class Double(Fixed):
    def changed(self, y: Tensor) -> Tensor:
        return y.double()


class Centered(Fixed):
    def changed(self, y: Tensor) -> Tensor:
        return y - y.mean(0)


class Masked(Fixed):
    """Gives −∞, as a network may whose classes cannot all follow."""

    def changed(self, y: Tensor) -> Tensor:
        return torch.cat((y[..., :1] - torch.inf, y[..., 1:]), -1)


class Free(nn.Module):
    def __init__(self, *args: int, **options: float) -> None:
        super().__init__()
        self.args, self.options = args, options
        self.linear = nn.Linear(args[0], args[1])

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.linear(x), None


def test_it_is_made_with_the_options_and_tried_out_without_random_numbers() -> None:
    torch.manual_seed(4)
    alone, after = Running(3, 5, width=2), torch.get_rng_state()
    torch.manual_seed(4)
    made = make_network(Running, 3, 5, {"width": 2})
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(*pair) for pair in zip(made.parameters(), alone.parameters(), strict=True))
    assert made.training
    free = make_network(Free, 3, 5, {"anything": 0.5})
    assert (free.args, free.options) == ((3, 5), {"anything": 0.5})
    assert isinstance(make_layer(Running, 3, 5, {"width": 4}).first, nn.Linear)
    assert isinstance(make_network(Masked, 3, 5), Masked)


def test_a_text_is_read_as_ids() -> None:
    made = make_network(Running, 50, 50, {"width": 2, "text": True}, is_text=True)
    y, _ = UserNetwork(made)(torch.tensor([[0, 49], [3, 7], [1, 1]]))
    assert y.shape == (3, 2, 50)


def test_the_last_output_alone_where_no_other_is_needed() -> None:
    made, x = make_network(Running, 3, 5, {"width": 2}), torch.randn(6, 2, 3)
    every, last = UserNetwork(made, output_steps="all"), UserNetwork(made, output_steps="last")
    (y, state), (y_last, state_last) = every(x), last(x)
    assert torch.equal(y, made(x)[0])
    assert torch.equal(y[-1:], y_last)
    assert torch.equal(state["sum"], state_last["sum"])
    count = 3 * 2 + 2 + 2 * 5 + 5
    assert last.parameter_counts() == {"recurrent": count, "total": count}
    assert last.module is made


REFUSED: list[tuple[type[nn.Module], dict[str, Any], str]] = [
    (Running, {}, r"^Running needs model\.options\.width: type model\.options\.width=…$"),
    (
        Running,
        {"width": 2, "wdith": 3},
        r"^Running takes no model\.options\.wdith; it takes model\.options\.width, model\.options\.text$",
    ),
    (Fixed, {"width": 2}, r"^Fixed takes no model\.options\.width; it takes none$"),
    (
        Running,
        {"width": "a"},
        rf"^Running\(3, 5, width='a'\) cannot be made, of 3 inputs and 5 outputs: .*\({HERE}, line \d+\)$",
    ),
    (OfLastStep, {}, r"gave a y of shape \(3, 5\), not of shape \(4, 3, 5\): steps, sequences, outputs$"),
    (Squeezed, {}, r"x of shape \(4, 1, 3\) .* gave a y of shape \(4, 5\), not of shape \(4, 1, 5\): steps, sequences"),
    (Double, {}, r"gave a y of torch\.float64, not torch\.float32$"),
    (Centered, {}, "gives other outputs where a sequence is cut in two windows"),
]


def test_what_breaks_the_protocol_is_said(subtests: pytest.Subtests) -> None:
    for kind, options, said in REFUSED:
        with subtests.test(kind=kind, said=said), pytest.raises(UserCodeError, match=said):
            make_network(kind, 3, 5, options)
    with pytest.raises(UserCodeError, match=r"with x of ids, int64, of shape \(4, 3\) and state=None failed: .*Error"):
        make_network(Running, 9, 9, {"width": 2}, is_text=True)  # a linear layer cannot read them
    with pytest.raises(UserCodeError, match=r"not of shape \(4, 3, 7\)"):
        check_module(Fixed(3, 5), Sizes(3, 7, "outputs"))
