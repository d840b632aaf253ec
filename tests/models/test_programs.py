"""Networks as programs: torch.export and ONNX compute what torch computes, for windows of any size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from examples.own_cell import GatedCell
from fptt_dist.config import AwdLSTM, Pretrained
from fptt_dist.layers import PLACES
from fptt_dist.models import AwdLstm, Network, recurrent_layer
from fptt_dist.models.programs.onnx_program import onnx_program
from fptt_dist.models.programs.step import ProgramError, StepProgram, step_program
from fptt_dist.models.programs.torch_program import save_torch_program, torch_program

INPUTS, HIDDEN, OUTPUTS, SYMBOLS = 3, 8, 2, 11
Run = Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]
SPIKING = ("lif", "alif")
QUICK = ("lru",)


def network(layer: str, layers: int = 1) -> Network:
    torch.manual_seed(0)
    return Network(recurrent_layer(layer, INPUTS, HIDDEN, layers=layers), HIDDEN, OUTPUTS).eval()


def text_network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "awd_lstm":
        keys = AwdLSTM(embedding=6, hidden=HIDDEN, layers=2, num_experts=2).model_dump(
            exclude={"layer", *Pretrained.model_fields}
        )
        return AwdLstm(SYMBOLS, **keys).eval()
    return Network(
        recurrent_layer("gru", 5, HIDDEN, layers=2), HIDDEN, SYMBOLS, symbols=SYMBOLS, embedding=5, dropout=0.5
    ).eval()


def own_network() -> nn.Module:
    torch.manual_seed(0)
    return Network(GatedCell(INPUTS, HIDDEN), HIDDEN, OUTPUTS).eval()


def in_torch(step: StepProgram, folder: Path) -> Run:
    save_torch_program(torch_program(step), folder / "model.pt2")
    program = torch.export.load(folder / "model.pt2").module()

    def run(x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, *after = program(x, *state)
        return y, after

    return run


def in_onnx(step: StepProgram, folder: Path) -> Run:
    (folder / "model.onnx").write_bytes(onnx_program(step).SerializeToString())
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def run(x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        named = {f"state_{number}": each.numpy() for number, each in enumerate(state)}
        y, *after = session.run(None, {"x": x.numpy(), **named})
        return torch.from_numpy(y), [torch.from_numpy(each) for each in after]

    return run


def zeros(step: StepProgram, batch: int) -> list[Tensor]:
    shapes = [[batch if size == "batch" else int(size) for size in shape] for shape in step.state_shapes]
    return [torch.zeros(shape, dtype=each.dtype) for shape, each in zip(shapes, step.state, strict=True)]


@torch.no_grad()
def check(model: nn.Module, folder: Path, *, symbols: bool = False) -> None:
    """Compare both programs with torch: windows of several sizes, and each step from the state that torch has there."""
    folder.mkdir()
    step = step_program(model, INPUTS, symbols=symbols)
    runs = {"torch": in_torch(step, folder), "onnx": in_onnx(step, folder)}
    random = torch.Generator().manual_seed(1)
    for steps, batch in ((9, 7), (1, 1), (40, 2)):
        x = torch.randn(steps, batch, INPUTS, generator=random)
        x = (x[..., 0].abs() * 1e4).long() % SYMBOLS if symbols else x
        expected, last = model(x, None)
        for name, run in runs.items():
            y, after = run(x, zeros(step, batch))
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=2e-5, msg=name)
            torch.testing.assert_close(after, tree_leaves(last), rtol=1e-4, atol=2e-5, msg=name)
        state = None
        for x_t in x[:20].split(1):
            before = zeros(step, batch) if state is None else tree_leaves(state)
            expected, state = model(x_t, state)
            for name, run in runs.items():
                y, after = run(x_t, before)
                torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5, msg=name)
                torch.testing.assert_close(after, tree_leaves(state), rtol=1e-5, atol=1e-5, msg=name)


def test_a_layer_of_each_kind_of_arithmetic(tmp_path: Path) -> None:
    for layer in QUICK:
        check(network(layer, layers=2), tmp_path / layer)


@pytest.mark.slow
def test_every_layer(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for layer in PLACES:
        if layer not in QUICK:
            with subtests.test(layer=layer):
                check(network(layer, layers=1 if layer == "trellis" else 2), tmp_path / layer)


@pytest.mark.slow
def test_texts_and_layers_of_ones_own(tmp_path: Path) -> None:
    check(text_network("gru"), tmp_path / "gru", symbols=True)
    check(text_network("awd_lstm"), tmp_path / "awd_lstm", symbols=True)
    check(own_network(), tmp_path / "own")


@pytest.mark.slow
@torch.no_grad()
def test_ten_thousand_steps_from_a_state_of_its_own(tmp_path: Path) -> None:
    """Rounding is not carried on: it does not grow with the steps."""
    x = torch.randn(10_000, 1, INPUTS, generator=torch.Generator().manual_seed(2))
    for layer in ("lstm", "gru", "minlstm", "lru"):
        model = network(layer)
        step = step_program(model, INPUTS, symbols=False)
        found, _ = in_onnx(step, tmp_path)(x, zeros(step, 1))
        expected, _ = model(x)
        assert (found - expected).abs().max().item() < 1e-4, layer


@pytest.mark.slow
@torch.no_grad()
def test_spikes_are_those_of_torch(tmp_path: Path) -> None:
    """A spike is a threshold: rounding may move one, and what follows, but hardly any is."""
    x = 3 * torch.randn(2000, 4, INPUTS, generator=torch.Generator().manual_seed(3))
    for layer in SPIKING:
        model = network(layer)
        spikes, _ = model.recurrent(x)
        step = step_program(Spikes(model.recurrent), INPUTS, symbols=False)
        found, _ = in_onnx(step, tmp_path)(x, zeros(step, 4))
        # A spike adds 1 − e^(−1/τ) to its filtered trace, more than 0.04 here.
        rises = [(each[1:] - 0.96 * each[:-1] > 0.02) for each in (found, spikes)]
        assert 0.01 < rises[1].float().mean().item() < 0.9, layer
        assert (rises[0] == rises[1]).float().mean().item() > 0.999, layer


class Spikes(nn.Module):
    """A layer alone, whose outputs are its spikes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        return self.layer(x, state)


class Refused(nn.Module):
    """Networks that are no programs, each for a reason of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        y = self.linear(x)
        if self.kind == "no state":
            return y, None
        first = torch.ones(x.shape[1], HIDDEN) if self.kind == "ones" else torch.zeros(x.shape[1], HIDDEN)
        total = (first if state is None else state) + y.sum(0)
        if self.kind == "branch" and total.sum().item() > 0:
            total = total * 0.5
        return y + total, total


def test_what_is_no_program_is_refused_with_the_reason() -> None:
    reasons = {
        "no state": "it has no state: each step is computed by itself",
        "ones": "a state of None is not the same as zeros",
        "branch": "torch.export cannot trace it: ",
    }
    for kind, reason in reasons.items():
        with pytest.raises(ProgramError, match=reason):
            step_program(Refused(kind).eval(), INPUTS, symbols=False)


@torch.no_grad()
def test_what_depends_on_parameters_alone_is_computed_once() -> None:
    """The orthogonal matrix, for example, is the exponential of another one."""
    step = step_program(network("orthogonal"), INPUTS, symbols=False)
    names = [str(node.target) for node in step.graph.graph.nodes if node.op == "call_function"]
    assert names
    assert not [name for name in names if "exp" in name or "linalg" in name or "solve" in name]
    assert np.isfinite(step.graph(step.x, *step.state)[0].numpy()).all()
