"""One battery over every network, and chrono initialization."""

from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fptt_dist.algorithm import detach, window_slices
from fptt_dist.models import Network, chrono_init, hidden_of, penalty_of, recurrent_layer
from tests.models.networks import (
    ALL,
    HIDDEN,
    IDS,
    INPUTS,
    NUMBERS,
    OUTPUTS,
    SPIKING,
    SYMBOLS,
    network,
    some_inputs,
    tensors,
)


def test_shapes_and_state(subtests: pytest.Subtests) -> None:
    options = [(1, True, 1), (1, False, 2), (7, True, 2), (7, False, 1)]  # every pair of two
    for name, (steps, training, layers) in product(ALL, options):
        with subtests.test(steps=steps, training=training, name=name, layers=layers):
            output, state = network(name, layers).train(training)(some_inputs(name, steps))
            assert output.shape == (steps, 4, OUTPUTS if name in NUMBERS else SYMBOLS)
            hidden = tensors(hidden_of(state))
            if name == "trellis":
                assert tuple(hidden.pop(0).shape) == (1, 4, INPUTS), "the last step's inputs"
            assert all(part.requires_grad for part in hidden)
            shapes = [tuple(part.shape) for part in hidden]
            match name:
                case "lstm" | "words":
                    assert shapes == [(layers, 4, HIDDEN)] * 2
                case "gru" | "rnn" | "antisymmetric" | "antisymmetric-plain":
                    assert shapes == [(layers, 4, HIDDEN)]
                case _ if name in NUMBERS:
                    assert shapes
                    assert all(shape[:2] == (layers, 4) for shape in shapes)
                case _:
                    last = 6 if name == "awd-experts" else 4
                    assert shapes == [(1, 4, 5)] * 2 * (layers - 1) + [(1, 4, last)] * 2


def test_windows_with_the_state_handed_on_equal_one_pass(subtests: pytest.Subtests) -> None:
    for name, layers in product(ALL, (1, 2)):
        with subtests.test(name=name, layers=layers):
            model, x = network(name, layers).double().eval(), some_inputs(name, 7, dtype=torch.float64)
            whole, end = model(x)
            state, parts = None, []
            for part in window_slices(7, 3):
                y, state = model(x[part], detach(state))
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
            for one, other in zip(tensors(state), tensors(end), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", ["antisymmetric", "awd", "awd-experts"])
def test_in_training_too_wherever_the_sequence_is_cut(name: str, lengths: list[int], seed: int) -> None:
    model, x = network(name, 2).double(), some_inputs(name, sum(lengths), dtype=torch.float64)
    torch.manual_seed(seed)
    whole, _ = model(x)
    torch.manual_seed(seed)  # the first window draws the masks that the whole sequence drew
    state, parts, start = None, [], 0
    for length in lengths:
        y, state = model(x[start : start + length], detach(state))
        parts.append(y)
        start += length
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_no_state_is_zeros(subtests: pytest.Subtests) -> None:
    for name in ALL:
        with subtests.test(name=name):
            model, x = network(name, 2).eval(), some_inputs(name, 3)
            output, state = model(x)
            assert torch.equal(model(x, tree_map(torch.zeros_like, state))[0], output)


def test_a_detached_state_cuts_the_graph(subtests: pytest.Subtests) -> None:
    for name in ALL:
        with subtests.test(name=name):
            model, x = network(name, 2), some_inputs(name, 6)
            y, state = model(x[:3])
            assert any(part.requires_grad for part in tensors(state))
            cut = detach(state)
            assert type(cut) is type(state)
            assert len(tensors(cut)) == len(tensors(state))
            assert not any(part.requires_grad for part in tensors(cut))
            y.sum().backward()
            model.zero_grad()
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                model(x[3:], state)[0].sum().backward()
            model.zero_grad()
            y, after = model(x[3:], cut)
            penalty = penalty_of(after)
            (y.sum() if penalty is None else y.sum() + penalty).backward()
            assert all(p.grad is not None for p in model.parameters())


def test_sequences_of_a_batch_do_not_see_each_other(subtests: pytest.Subtests) -> None:
    for name, training in [*((name, True) for name in ALL), *((name, False) for name in (*IDS, "rlstm"))]:
        with subtests.test(name=name, training=training):
            model, x = network(name, 2).double().train(training), some_inputs(name, 6, dtype=torch.float64)
            state = detach(model(x)[1])
            other = x.clone()
            other[:, 1] = (x[:, 1] + 1) % SYMBOLS
            torch.manual_seed(5)
            before, _ = model(x, state)
            torch.manual_seed(5)
            after, _ = model(other, state)
            assert torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
            assert not torch.equal(before[:, 1], after[:, 1])


def test_gradients_in_float64(subtests: pytest.Subtests) -> None:
    smooth = [name for name in ALL if name not in ("awd-window", *SPIKING)]
    for name, (training, layers) in product(smooth, ((True, 2), (False, 1))):
        with subtests.test(name=name, training=training):
            model = network(name, layers).double().train(training)
            x = some_inputs(name, 3, 2, torch.float64)
            state = detach(model(x)[1])  # with the sequence's masks, which make the next pass a function
            inputs = [*model.parameters(), *([x.requires_grad_()] if x.is_floating_point() else [])]

            def objective(*_: Tensor, model: Any = model, x: Tensor = x, state: Any = state) -> tuple[Tensor, ...]:
                y, after = model(x, state)
                penalty = penalty_of(after)
                return (y, *tensors(hidden_of(after)), *([] if penalty is None else [penalty]))

            assert torch.autograd.gradcheck(objective, inputs, fast_mode=True)


def test_weights_and_copies_give_the_same_network(subtests: pytest.Subtests) -> None:
    for name in ALL:
        with subtests.test(name=name):
            model, x = network(name, 2).eval(), some_inputs(name, 5)
            torch.manual_seed(1)
            expected = model(x)[0]
            copy = deepcopy(model)
            assert torch.equal(copy(x)[0], expected)
            other = network(name, 2).eval()
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.add_(0.5)
            assert not torch.equal(other(x)[0], expected)
            other.load_state_dict(model.state_dict())
            assert torch.equal(other(x)[0], expected)
            with torch.no_grad():
                for parameter in copy.parameters():
                    parameter.zero_()
            assert torch.equal(model(x)[0], expected), "the copy has weights of its own"
            assert len(copy(x)[0].unique()) == 1, "and computes with them"
            assert model.state_dict().keys() == dict(model.named_parameters()).keys(), "each once, and nothing else"


def test_the_last_step_alone_is_read(subtests: pytest.Subtests) -> None:
    for name in NUMBERS:
        with subtests.test(name=name):
            x = some_inputs(name, 6, dtype=torch.float64)
            one, every = (network(name, output_steps=steps).double().eval()(x)[0] for steps in ("last", "all"))
            torch.testing.assert_close(one, every[-1:], rtol=0, atol=1e-14)  # a product may round by its number of rows


def test_parameters_are_counted_the_papers_way() -> None:
    # Kag & Saligrama 2021: 66K (one input) and 67K (three) for LSTM-128, 51K for GRU-128 with three inputs, 37K for the
    # antisymmetric network with its output layer; Chang et al. 2019: 10K of it on one input.
    rows: list[tuple[str, int, int, int]] = [
        ("lstm", 1, 128, 67072),
        ("lstm", 3, 128, 68096),
        ("gru", 3, 128, 51072),
        ("lstm", 280, 128, 209920),
        ("antisymmetric", 3, 256, 37258 - 2570),
        ("antisymmetric", 1, 128, 9930 - 1290),
    ]
    for cell, inputs, hidden, expected in rows:
        counts = Network(recurrent_layer(cell, inputs, hidden), hidden, 10).parameter_counts()
        assert counts == {"recurrent": expected, "total": expected + hidden * 10 + 10}


def test_parameters_of_words_are_counted_with_the_embedding() -> None:
    model = Network(recurrent_layer("lstm", 280, 128), 128, 1000, symbols=1000, embedding=280)
    assert model.parameter_counts() == {"recurrent": 209920, "total": 209920 + 280000 + 129000}


def test_a_network_of_numbers_draws_what_its_parts_draw() -> None:
    torch.manual_seed(7)
    layer, readout = nn.LSTM(3, 5), nn.Linear(5, 2)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    model = Network(recurrent_layer("lstm", 3, 5), 5, 2, dropout=0.5)
    assert torch.equal(torch.get_rng_state(), after)
    parts = {f"recurrent.{name}": p for name, p in layer.named_parameters()}
    parts |= {f"readout.{name}": p for name, p in readout.named_parameters()}
    assert list(parts) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(p, parts[name]) for name, p in model.named_parameters())
    x = torch.randn(4, 2, 3)
    assert torch.equal(model(x)[0], readout(layer(x)[0])), "and drops nothing in training"


class Through(nn.Module):
    """Hands on what it reads."""

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        return x, state


def test_embedded_words_and_what_is_read_out_are_dropped_element_by_element() -> None:
    model = Network(Through(), 40, 40, symbols=3, embedding=40, dropout=0.5)
    with torch.no_grad():
        model.readout.weight.copy_(torch.eye(40))
        model.readout.bias.zero_()
    x = torch.randint(3, (50, 6))
    embedded = dict(model.named_parameters())["embedding.weight"][x]
    torch.testing.assert_close(model.eval()(x)[0], embedded, rtol=0, atol=0)
    assert embedded.abs().max() <= 0.1
    torch.manual_seed(0)
    ratio = model.train()(x)[0] / embedded
    kept = ratio != 0
    assert set(ratio[kept].round(decimals=4).tolist()) == {4.0}, "twice halved, twice doubled"
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.02)
    shares = kept.float()
    for dimension in range(3):  # nothing is locked along steps, sequences or units: no slice is dropped as a whole
        others = tuple(d for d in range(3) if d != dimension)
        assert shares.mean(dim=others).std() < 0.1


def test_outputs_are_dropped_in_training_alone() -> None:
    model, x = network("lstm", output_dropout=0.25), torch.randn(100, 20, 3)
    expected = network("lstm")(x)[0]
    assert torch.equal(model.eval()(x)[0], expected)
    torch.manual_seed(0)
    output = model.train()(x)[0]
    kept = output != 0
    torch.testing.assert_close(output[kept], expected[kept] / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_an_embedding_without_symbols_is_refused() -> None:
    for symbols, embedding in ((4, None), (None, 4)):
        with pytest.raises(ValueError, match="give both, or neither"):
            Network(recurrent_layer("lstm", 4, 5), 5, 2, symbols=symbols, embedding=embedding)


def test_options_of_another_cell_are_refused() -> None:
    with pytest.raises(TypeError, match=r"gated: for antisymmetric, not for cell='gru'"):
        recurrent_layer("gru", 3, 5, gated=True)


def test_chrono_biases_remember_for_the_sequences_length(subtests: pytest.Subtests) -> None:
    for cell in ("lstm", "gru"):
        with subtests.test(cell=cell):
            torch.manual_seed(0)
            layer = recurrent_layer(cell, 2, 2000)
            before = {name: p.detach().clone() for name, p in layer.named_parameters()}
            chrono_init(layer, 500)
            after = {name: p.detach() for name, p in layer.named_parameters()}
            gate = (after["bias_ih_l0"] + after["bias_hh_l0"]).view(-1, 2000)
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
            chrono_init(layer, 400)
        state = (torch.zeros(1, 1, 64), torch.ones(1, 1, 64))
        kept.append(layer(torch.zeros(100, 1, 1), state)[1][1].detach().abs().mean().item())
    assert kept[1] > 5 * kept[0]


def test_chrono_is_refused_where_it_means_nothing() -> None:
    cells: list[str] = ["rnn", "antisymmetric"]
    for cell in cells:
        with pytest.raises(ValueError, match="RNN has none"):
            chrono_init(recurrent_layer(cell, 2, 4), 100)
    with pytest.raises(ValueError, match="length=2"):
        chrono_init(recurrent_layer("lstm", 2, 4), 2)
