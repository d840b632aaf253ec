"""AWD-LSTM against an independent computation in numpy, and what its masks do."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from fptt_dist.algorithm import detach
from fptt_dist.models import AwdLstm, WindowState, hidden_of, penalty_of
from tests.models.networks import DROPPED, NOT_DROPPED, SYMBOLS, awd, carried, tensors

EXPERTS = {"num_experts": 3, "last_hidden": 6, "dropout_latent": 0.3}


def model(**keys: Any) -> AwdLstm:
    torch.manual_seed(0)
    return awd(**keys)


def ids(steps: int = 6, batch: int = 3) -> Tensor:
    return torch.randint(SYMBOLS, (steps, batch), generator=torch.Generator().manual_seed(4))


def said(state: Any) -> float:
    """The penalty, which must be there and trained on."""
    penalty = penalty_of(state)
    assert penalty is not None
    assert penalty.shape == ()
    assert penalty.requires_grad
    return penalty.item()


def sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def softmax(x: NDArray) -> NDArray:
    exponentials = np.exp(x)
    return exponentials / exponentials.sum()


def reference(network: AwdLstm, x: NDArray, masks: dict[str, NDArray]) -> tuple[NDArray, float]:
    """Outputs and penalty of a window from a state of zeros, one sequence, step and expert at a time."""
    weights = {name: p.detach().numpy() for name, p in network.named_parameters()}
    embedding, layers = weights["embedding.weight"], len(network.recurrent)
    decoder = weights.get("decoder_weight", embedding)
    outputs = np.zeros((*x.shape, len(embedding)))
    raw, dropped = [], []
    for b in range(x.shape[1]):
        state: dict[int, tuple[NDArray, NDArray]] = {}
        for s in range(x.shape[0]):
            h = embedding[x[s, b]] * masks["embedding"][x[s, b], 0] * masks["input"][0, b]
            for i in range(layers):
                recurrent = weights[f"recurrent.{i}.weight_hh_l0"] * masks[f"weight.{i}"]
                size = recurrent.shape[1]
                before, cell = state.get(i, (np.zeros(size), np.zeros(size)))
                gates = weights[f"recurrent.{i}.weight_ih_l0"] @ h + weights[f"recurrent.{i}.bias_ih_l0"]
                gates = gates + recurrent @ before + weights[f"recurrent.{i}.bias_hh_l0"]
                enter, forget, candidate, leave = np.split(gates, 4)
                cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)
                top = sigmoid(leave) * np.tanh(cell)
                state[i] = top, cell
                h = top * masks["output" if i == layers - 1 else f"hidden.{i}"][0, b]
            raw.append(state[layers - 1][0])
            dropped.append(h)
            if network.num_experts == 1:
                outputs[s, b] = decoder @ h + weights["decoder_bias"]
                continue
            prior = softmax(weights["prior.weight"] @ h)
            latent = np.tanh(weights["latent.weight"] @ h + weights["latent.bias"]) * masks["latent"][0, b]
            latents = np.split(latent, network.num_experts)
            mixed = [p * softmax(decoder @ z + weights["decoder_bias"]) for p, z in zip(prior, latents, strict=True)]
            outputs[s, b] = np.log(sum(mixed))
    tops = np.array(raw).reshape(x.shape[1], x.shape[0], -1)
    penalty = network.activation_penalty * np.mean(np.array(dropped) ** 2)
    penalty += network.temporal_penalty * np.mean((tops[:, 1:] - tops[:, :-1]) ** 2)
    return outputs, float(penalty)


def test_the_papers_equations_with_every_mask(subtests: pytest.Subtests) -> None:
    for layers, keys in product(
        (1, 3), ({}, {"tie_weights": False, "last_hidden": 3}, EXPERTS, {**EXPERTS, "tie_weights": False})
    ):
        with subtests.test(layers=layers, keys=keys):
            half = dict.fromkeys([*DROPPED, "dropout_latent"], 0.5)
            network = model(layers=layers, activation_penalty=2.0, temporal_penalty=3.0, **{**keys, **half}).double()
            with torch.no_grad():
                network.decoder_bias.add_(torch.randn(SYMBOLS))
            output, state = network(ids())
            masks = {name: mask.numpy() for name, mask in (carried(state).masks or {}).items()}
            assert all((mask == 0).any() and (mask == 2).any() for mask in masks.values())
            expected, penalty = reference(network, ids().numpy(), masks)
            np.testing.assert_allclose(output.detach().numpy(), expected, rtol=0, atol=1e-12)
            assert said(state) == pytest.approx(penalty, rel=1e-12)


@pytest.mark.parametrize("masks", ["sequence", "window"])
def test_without_dropout_it_is_a_stack_of_lstms_to_the_bit(masks: str) -> None:
    network = model(layers=3, last_hidden=3, tie_weights=False, dropout_mask_scope=masks, **NOT_DROPPED)
    layers = [nn.LSTM(4, 5), nn.LSTM(5, 5), nn.LSTM(5, 3)]
    for own, layer in zip(network.recurrent, layers, strict=True):
        layer.load_state_dict(own.state_dict())
    weights = dict(network.named_parameters())
    expected, ends = functional.embedding(ids(), weights["embedding.weight"]), []
    for layer in layers:
        expected, end = layer(expected)
        ends.append(end)
    expected = functional.linear(expected, weights["decoder_weight"], weights["decoder_bias"])
    for training in (True, False):
        output, state = network.train(training)(ids())
        assert torch.equal(output, expected)
        assert type(state) is tuple, "there is nothing to carry but the recurrent state"
        assert all(torch.equal(one, other) for one, other in zip(tensors(state), tensors(ends), strict=True))


SHAPES = {
    "weight_drop": {"weight.0": (20, 5), "weight.1": (20, 5), "weight.2": (24, 6)},
    "dropout_embedding": {"embedding": (7, 1)},
    "dropout_input": {"input": (1, 3, 4)},
    "dropout_hidden": {"hidden.0": (1, 3, 5), "hidden.1": (1, 3, 5)},
    "dropout_output": {"output": (1, 3, 6)},
    "dropout_latent": {"latent": (1, 3, 12)},
}


def test_each_dropout_has_its_own_masks(subtests: pytest.Subtests) -> None:
    for option in SHAPES:
        with subtests.test(option=option):
            network = model(layers=3, **{**EXPERTS, **NOT_DROPPED, "dropout_latent": 0.0, option: 0.2})
            drawn: dict[str, list[Tensor]] = {}
            for _ in range(20):
                masks = carried(network(ids())[1]).masks or {}
                assert {name: tuple(mask.shape) for name, mask in masks.items()} == SHAPES[option]
                for name, mask in masks.items():
                    drawn.setdefault(name, []).append(mask)
            for draws in drawn.values():
                values = torch.stack(draws)
                assert set(values.unique().tolist()) == {0.0, 1.25}
                share = (values == 0).float().mean().item()
                assert abs(share - 0.2) < 4 * math.sqrt(0.16 / values.numel())


def test_dropped_weights_alone_get_no_gradient_and_nothing_is_moved() -> None:
    network = model(layers=2)
    before = {name: (id(p), p.data_ptr(), p.detach().clone()) for name, p in network.named_parameters()}
    output, state = network(ids())
    output.square().sum().backward()
    masks = carried(state).masks or {}
    for i in range(2):
        gradient, mask = network.recurrent[i].weight_hh_l0.grad, masks[f"weight.{i}"]
        assert isinstance(gradient, Tensor)
        assert torch.equal(gradient != 0, mask != 0)
    for name, p in network.named_parameters():
        assert (id(p), p.data_ptr()) == before[name][:2]
        assert torch.equal(p, before[name][2])


def test_the_embedding_is_dropped_by_whole_rows_and_the_tied_decoder_is_not() -> None:
    free = model(tie_weights=False, **{**NOT_DROPPED, "dropout_embedding": 0.5})
    output, state = free(ids())
    output.square().sum().backward()
    gradient, mask = free.embedding.weight.grad, (carried(state).masks or {})["embedding"][:, 0]
    assert gradient is not None
    used = torch.zeros(SYMBOLS, dtype=torch.bool)
    used[ids().flatten()] = True
    assert 0 < (mask == 0)[used].sum() < used.sum()
    assert torch.equal((gradient != 0).any(dim=1), used & (mask != 0))
    tied = model(**{**NOT_DROPPED, "dropout_embedding": 0.5})
    tied(ids())[0].square().sum().backward()
    gradient = tied.embedding.weight.grad
    assert gradient is not None
    assert (gradient != 0).all()


def test_a_sequence_keeps_its_masks_whatever_the_random_state() -> None:
    network = model(**EXPERTS, activation_penalty=1.0)
    first = detach(network(ids())[1])
    output, second = network(ids(), first)
    assert carried(second).masks is first.masks
    torch.manual_seed(77)
    again, after = network(ids(), first)
    assert torch.equal(again, output)
    assert said(after) == said(second)
    for begin in (None, hidden_of(first)):
        _, other = network(ids(), begin)
        fresh = carried(other).masks or {}
        assert fresh.keys() == first.masks.keys()
        assert all(not torch.equal(fresh[name], first.masks[name]) for name in ("weight.0", "weight.1", "latent"))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_window_may_draw_its_own_masks(penalty: float) -> None:
    network = model(dropout_mask_scope="window", activation_penalty=penalty)
    output, state = network(ids())
    if penalty:
        assert carried(state).masks is None
    else:
        assert type(state) is tuple
    torch.manual_seed(0)
    first = network(ids(), detach(state))[0]
    assert not torch.equal(first, network(ids(), detach(state))[0])
    torch.manual_seed(0)
    assert torch.equal(first, network(ids(), detach(state))[0])
    assert output.shape == first.shape


@pytest.mark.parametrize("keys", [{}, EXPERTS])
def test_evaluation_drops_nothing(keys: dict[str, Any]) -> None:
    network = model(activation_penalty=1.0, temporal_penalty=1.0, **keys)
    state = detach(network(ids())[1])
    network.eval()
    output, after = network(ids(), state)
    assert penalty_of(after) is None
    assert type(after) is tuple
    assert torch.equal(network(ids(), hidden_of(state))[0], output), "the training's masks are let go"
    whole = model(**{**keys, **NOT_DROPPED, "dropout_latent": 0.0})
    assert torch.equal(whole(ids(), hidden_of(state))[0], output), "as a network without dropout"


def test_micro_batches_have_masks_of_their_own_and_do_not_disturb_each_other() -> None:
    network = model()
    one, other = (detach(network(ids())[1]) for _ in range(2))
    assert all(not torch.equal(one.masks[name], other.masks[name]) for name in ("weight.0", "weight.1"))
    kept = {name: mask.clone() for name, mask in one.masks.items()}
    alone = network(ids(), one)[0]
    network(ids(2), other)[0].sum().backward()
    assert torch.equal(network(ids(), one)[0], alone)
    assert all(torch.equal(one.masks[name], mask) for name, mask in kept.items())


def test_masks_are_locked_along_the_steps() -> None:
    # Without recurrent weights and with one symbol throughout, the steps differ by the cell alone: a unit that is
    # dropped is missing at each of them.
    network = model(layers=1, tie_weights=False, **{**NOT_DROPPED, "dropout_output": 0.5})
    with torch.no_grad():
        assert network.decoder_weight is not None
        network.decoder_weight.copy_(torch.eye(SYMBOLS, 4))
    output, _ = network(ids(40, 50))
    missing = (output[..., :4] == 0).float()
    assert missing.mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(missing.amin(dim=0), missing.amax(dim=0))


def test_a_window_of_one_step_has_no_temporal_penalty() -> None:
    both = model(activation_penalty=2.0, temporal_penalty=1.0, **NOT_DROPPED)
    alone = model(activation_penalty=2.0, **NOT_DROPPED)
    one, two, one_alone, two_alone = (said(network(ids(steps))[1]) for network in (both, alone) for steps in (1, 2))
    assert one == one_alone
    assert two > two_alone
    assert penalty_of(model(temporal_penalty=1.0)(ids(1))[1]) is None


def test_penalty_and_state_of_what_has_neither() -> None:
    for state in (None, torch.zeros(2), (torch.zeros(2), torch.zeros(2))):
        assert penalty_of(state) is None
        assert hidden_of(state) is state
    state = WindowState(torch.zeros(2), None, torch.ones(()))
    assert penalty_of(state) is state.penalty
    assert hidden_of(state) is state.hidden


def test_one_cross_entropy_serves_both_outputs() -> None:
    output = model(**EXPERTS).double()(ids())[0].flatten(0, 1)
    targets = ids().roll(1, 0).flatten()
    np.testing.assert_allclose(output.exp().sum(-1).detach(), 1.0, rtol=0, atol=1e-14)
    entropy, likelihood = functional.cross_entropy(output, targets), functional.nll_loss(output, targets)
    torch.testing.assert_close(entropy, likelihood, rtol=0, atol=1e-14)


def test_experts_that_agree_are_one_softmax() -> None:
    network = model(num_experts=3, **NOT_DROPPED).double()
    assert network.latent is not None
    with torch.no_grad():
        for parameter in network.latent.parameters():
            parameter.copy_(torch.cat([parameter[:4]] * 3))
    captured: list[Tensor] = []
    network.latent.register_forward_hook(lambda _, __, output: captured.append(output[..., :4].tanh()))
    output, _ = network(ids())
    logits = captured[0] @ network.embedding.weight.T + network.decoder_bias
    torch.testing.assert_close(output, logits.log_softmax(-1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mixture_stays_finite_and_in_full_precision(dtype: torch.dtype) -> None:
    network = model(**EXPERTS, **NOT_DROPPED)
    with torch.no_grad():
        network.decoder_bias.copy_(torch.linspace(0.0, 5000.0, SYMBOLS))
        network.embedding.weight.mul_(1000.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output, _ = network(ids())
    assert output.dtype == torch.float32
    assert output.isfinite().all()
    assert output.min() < -1000
    output.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("experts", [1, 3])
def test_training_and_evaluation_run_in_mixed_precision(experts: int) -> None:
    network = model(num_experts=experts, activation_penalty=1.0, temporal_penalty=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = network(ids())
        output, state = network(ids(), detach(state))
    penalty = penalty_of(state)
    assert penalty is not None
    assert penalty.dtype == torch.float32
    (output.float().square().mean() + penalty).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = network(ids(), state)[0].float()
    torch.testing.assert_close(half, network(ids(), tree_map(Tensor.float, hidden_of(state)))[0], rtol=0.03, atol=0.03)


def test_parameters_are_counted_as_in_the_papers() -> None:
    # Kag & Saligrama 2021, table 5: 13.8M for characters, 22M for words with the mixture of softmaxes.
    with torch.device("meta"):
        characters = AwdLstm(50, embedding=200, hidden=1000, last_hidden=None, layers=3, **DROPPED)
        words = AwdLstm(10000, embedding=280, hidden=960, last_hidden=620, layers=3, num_experts=15, **DROPPED)
    assert characters.parameter_counts() == {"recurrent": 13_777_600, "total": 13_787_650}
    assert words.parameter_counts() == {"recurrent": 16_073_120, "total": 21_500_620}


def test_weights_are_drawn_as_by_merity() -> None:
    torch.manual_seed(0)
    network = AwdLstm(500, embedding=20, hidden=64, last_hidden=None, layers=2, tie_weights=False, **DROPPED)
    assert network.decoder_weight is not None
    for weight in (network.embedding.weight, network.decoder_weight):
        assert 0.099 < weight.abs().max() <= 0.1
        assert weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert network.decoder_bias.count_nonzero() == 0


def test_a_tied_decoder_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="last_hidden=5: a decoder tied to the embedding reads embedding=4"):
        awd(last_hidden=5)
    assert awd(last_hidden=4).decoder_weight is None
    assert awd(last_hidden=5, tie_weights=False).decoder_weight is not None
