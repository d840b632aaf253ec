"""LIF neurons against snntorch's, ALIF neurons against a literal loop, and what all spiking cells share."""

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise, product
from statistics import NormalDist
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor
from torch.func import functional_call

from fptt_dist.algorithm import detach, window_slices
from fptt_dist.models import compile_steps
from fptt_dist.models.cells.ltc import LTC
from fptt_dist.models.cells.spikes import spike
from fptt_dist.models.cells.spiking import ALIF, LIF

KINDS: list[type[Any]] = [LIF, ALIF, LTC]
READOUTS = ["membrane", "trace", "rate"]


class ReferenceSpike(torch.autograd.Function):
    """A step with the multi-Gaussian for a derivative: σ = 0.5, h = 0.15, s = 6, γ = 0.5."""

    @staticmethod
    def forward(ctx: Any, excess: Tensor) -> Tensor:
        ctx.save_for_backward(excess)
        return torch.where(excess > 0, 1.0, 0.0).to(excess)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (excess,) = ctx.saved_tensors

        def density(mean: float, deviation: float) -> Tensor:
            return (
                torch.distributions.Normal(excess.new_tensor(mean), excess.new_tensor(deviation)).log_prob(excess).exp()
            )

        return 0.5 * (1.15 * density(0, 0.5) - 0.15 * density(0.5, 3.0) - 0.15 * density(-0.5, 3.0)) * grads[0]


def reference_spike(excess: Tensor) -> Tensor:
    return ReferenceSpike.apply(excess)  # pyright: ignore[reportReturnType]


def some_layer(kind: type[Any], inputs: int = 3, hidden: int = 5, **keys: Any) -> Any:
    """A layer of which about every third step is a spike."""
    torch.manual_seed(0)
    model = kind(inputs, hidden, **keys).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for layer in range(model.num_layers):
            getattr(model, f"bias_l{layer}").add_(0.5)
    return model


def assert_same_with_gradients(model: Any, reference: Callable[[Tensor], Any], steps: int = 12) -> None:
    """Outputs, last state and the gradients of all parameters and inputs."""
    x, found = torch.randn(steps, 4, 3, dtype=torch.float64), []
    for function in (model, reference):
        inputs = x.clone().requires_grad_()
        y, state = function(inputs)
        ends = torch.cat([part.flatten() for part in state])
        loss = (y * torch.linspace(1, 2, y.numel()).view_as(y)).sin().sum() + (ends * ends).sum()
        parameters = list(model.parameters())
        found.append((y, ends, *torch.autograd.grad(loss, [inputs, *parameters])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert all(gradient.abs().max() > 1e-4 for gradient in found[0][2:]), "and each is seen"


@pytest.mark.parametrize("layers", [1, 2])
def test_lif_neurons_are_snntorchs(layers: int) -> None:
    model = some_layer(LIF, layers=layers, readout="membrane", threshold=0.25)
    neurons = []
    for _ in range(layers):
        neuron = snntorch.RLeaky(beta=0.5, threshold=0.25, linear_features=5, spike_grad=reference_spike).double()
        neuron.mem_reset = lambda mem: reference_spike(mem - 0.25)  # snntorch's own lets no gradient through the reset
        neurons.append(neuron)

    def reference(x: Tensor) -> Any:
        states, outputs = [[torch.zeros(4, 5, dtype=torch.float64)] * 2 for _ in range(layers)], []
        for below in x:
            for layer, neuron in enumerate(neurons):
                inward, recurrent, bias, membrane = model.parameters_of(layer)
                kept = membrane.sigmoid()
                weights = {
                    "beta": kept,
                    "recurrent.weight": (1 - kept)[:, None] * recurrent,
                    "recurrent.bias": torch.zeros(5, dtype=torch.float64),
                }
                current = (1 - kept) * (below @ inward.T + bias)
                states[layer] = functional_call(neuron, weights, (current, *states[layer]))
                below = states[layer][0]
            outputs.append(states[-1][1])
        return torch.stack(outputs), [torch.stack(parts) for parts in zip(*states, strict=True)]

    assert_same_with_gradients(model, reference)


@pytest.mark.parametrize("layers", [1, 2])
def test_alif_neurons_are_the_papers(layers: int) -> None:
    model = some_layer(ALIF, layers=layers, readout="membrane", threshold=0.3, adaptation=1.5)

    def reference(x: Tensor) -> Any:
        s, u, a = torch.zeros(3, layers, 4, 5, dtype=torch.float64).unbind()
        states, outputs = [(s[layer], u[layer], a[layer]) for layer in range(layers)], []
        for below in x:
            for layer in range(layers):
                inward, recurrent, bias, membrane, adaptation = model.parameters_of(layer)
                alpha, rho = membrane.sigmoid(), adaptation.sigmoid()
                s, u, a = states[layer]
                a = rho * a + (1 - rho) * s
                level = 0.3 + 1.5 * a
                u = alpha * u + (1 - alpha) * (below @ inward.T + s @ recurrent.T + bias) - level * s
                s = reference_spike(u - level)
                states[layer], below = (s, u, a), s
            outputs.append(states[-1][1])
        return torch.stack(outputs), [torch.stack(parts) for parts in zip(*states, strict=True)]

    assert_same_with_gradients(model, reference)


def test_the_derivative_of_a_spike_is_the_multi_gaussian(subtests: pytest.Subtests) -> None:
    for value in (-3.0, -0.5, 0.0, 0.1, 0.5, 2.0):
        with subtests.test(value=value):
            excess = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            output = spike(excess)
            assert output.item() == (1.0 if value > 0 else 0.0)
            (gradient,) = torch.autograd.grad(output, excess)
            center, right, left = NormalDist(0, 0.5), NormalDist(0.5, 3), NormalDist(-0.5, 3)
            expected = 0.5 * (1.15 * center.pdf(value) - 0.15 * right.pdf(value) - 0.15 * left.pdf(value))
            assert gradient.item() == pytest.approx(expected, rel=1e-12)


def one_neuron(kind: type[Any], current: float, logit: float, steps: int, **keys: Any) -> list[int]:
    """The steps at which a neuron spikes that sees a constant current and nothing of itself."""
    model = kind(1, 1, readout="rate", **keys).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_({"bias_l0": current, "membrane_l0": logit, "adaptation_l0": 3.0}.get(name, 0.0))
    rates = model(torch.zeros(steps, 1, 1, dtype=torch.float64))[0].flatten()
    counts = (rates * torch.arange(1, steps + 1)).round().tolist()
    return [step for step in range(steps) if counts[step] > (counts[step - 1] if step else 0)]


def test_a_membrane_reaches_its_threshold_when_the_closed_form_says() -> None:
    # u after n steps of a constant current is c (1 − αⁿ), α = 0.9: above 0.5 c at n = 7.
    logit = torch.tensor(0.9, dtype=torch.float64).logit().item()
    assert one_neuron(LIF, 1.0, logit, 40, threshold=0.5)[0] == 6
    assert one_neuron(LIF, 0.49, logit, 400, threshold=0.5) == []
    adaptive = one_neuron(ALIF, 1.0, logit, 400, threshold=0.5)
    assert adaptive[0] == 6
    pauses = [after - before for before, after in pairwise(adaptive)]
    assert pauses[-1] > pauses[0], "the threshold rises"
    assert len(adaptive) < len(one_neuron(LIF, 1.0, logit, 400, threshold=0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_traces_and_rates_of_the_spikes(kind: type[Any]) -> None:
    models = {readout: some_layer(kind, layers=2, readout=readout) for readout in READOUTS}
    for model in models.values():
        weights = {name: p for name, p in models["trace"].state_dict().items() if name != "trace"}
        model.load_state_dict(weights, strict=False)
    x = torch.randn(30, 4, 3, dtype=torch.float64)
    spikes, state = [], None
    for x_t in x:
        state = models["membrane"](x_t[None], state)[1]
        spikes.append(state[0][1])
    assert set(torch.stack(spikes).unique().tolist()) == {0.0, 1.0}
    kept, trace, total = models["trace"].trace.sigmoid(), torch.zeros(4, 5, dtype=torch.float64), 0
    traces, rates = models["trace"](x)[0], models["rate"](x)[0]
    for step, spiked in enumerate(spikes):
        trace, total = kept * trace + (1 - kept) * spiked, total + spiked
        torch.testing.assert_close(traces[step], trace, rtol=0, atol=1e-12)
        torch.testing.assert_close(rates[step], total / (step + 1), rtol=0, atol=1e-12)


def test_every_readout_goes_on_in_the_next_window(subtests: pytest.Subtests) -> None:
    for kind, readout in product(KINDS, READOUTS):
        with subtests.test(kind=kind, readout=readout):
            model, x = some_layer(kind, layers=2, readout=readout), torch.randn(7, 4, 3, dtype=torch.float64)
            whole, end = model(x)
            state, parts = None, []
            for part in window_slices(7, 3):
                y, state = model(x[part], detach(state))
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
            for one, other in zip(state or (), end, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
            assert torch.equal(deepcopy(model)(x)[0], whole)
            assert list(model.buffers()) == []


def test_weights_are_drawn_as_described() -> None:
    torch.manual_seed(0)
    model = ALIF(25, 400, layers=2, readout="trace")
    drawn = {name: p.detach() for name, p in model.named_parameters()}
    deviations = {"weight_ih_l0": 1 / 5, "weight_hh_l0": 1 / 20, "weight_ih_l1": 1 / 20, "weight_hh_l1": 1 / 20}
    for name, deviation in deviations.items():
        assert drawn[name].std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(drawn[name].mean().item()) < 0.03 * deviation
    for layer in (0, 1):
        assert drawn[f"bias_l{layer}"].count_nonzero() == 0
        for name, mean in (("membrane", 2.0), ("adaptation", 4.0)):
            assert drawn[f"{name}_l{layer}"].mean().item() == pytest.approx(mean, abs=0.15)
            assert drawn[f"{name}_l{layer}"].std().item() == pytest.approx(1.0, rel=0.1)
    assert torch.equal(drawn["trace"], torch.full((400,), 3.0))
    assert model(torch.rand(50, 2, 25))[1][0].mean(dim=(1, 2)).min() > 0.01, "all layers spike"


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_counts_spikes_and_steps(kind: type[Any]) -> None:
    # With so large a current there is a spike at every step; a sum in bf16 would stop at 256.
    model, state = kind(1, 2, readout="rate"), None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bias_l0.fill_(100.0)
    model = model.bfloat16()
    for _ in range(4):
        output, state = model(torch.zeros(100, 1, 1, dtype=torch.bfloat16), state)
        assert torch.equal(output[-1], torch.ones(1, 2, dtype=torch.bfloat16))
    assert state is not None
    assert all(part.dtype == torch.float32 for part in state)
    assert torch.equal(state[-1], torch.full((1, 1, 3), 400.0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # the compiler's imports
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_neurons_are_the_same(kind: type[Any], readout: str) -> None:
    model = some_layer(kind, layers=2, readout=readout)
    compiled = deepcopy(model)
    assert compile_steps(compiled)
    assert_same_with_gradients(
        model, lambda x: torch.func.functional_call(compiled, dict(model.named_parameters()), x), 19
    )
