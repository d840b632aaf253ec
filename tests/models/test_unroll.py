"""Compiled windows against stepping through them, and steps against closed forms."""

import json
import logging
import os
import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fptt_dist.algorithm import detach
from fptt_dist.models import Network, compile_steps, load_network, recurrent_layer, save_network
from fptt_dist.models.cells.antisymmetric import AntisymmetricRNN
from fptt_dist.models.unroll import unroll

slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # the compiler's imports


def turn(state: tuple[Tensor, Tensor], x_t: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """A plane turned by an angle, then moved by x."""
    cosine, sine = rotation.cos(), rotation.sin()
    return cosine * state[0] - sine * state[1] + x_t, sine * state[0] + cosine * state[1]


def closed_form(x: Tensor, start: tuple[Tensor, Tensor], angle: float) -> Any:
    """The same as sums of complex powers, at every step (S, B, 1)."""
    values, begin = x.detach().numpy(), start[0].detach().numpy() + 1j * start[1].detach().numpy()
    turned = np.exp(1j * angle)
    return np.stack(
        [turned ** (s + 1) * begin + sum(turned ** (s - r) * values[r] for r in range(s + 1)) for s in range(len(x))]
    )


@pytest.mark.parametrize(
    ("steps", "compiled"),
    [(1, False), (9, False), (1, True), (7, True), *(pytest.param(s, True, marks=slow) for s in (8, 19))],
)
def test_a_state_of_two_tensors(steps: int, compiled: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(steps, 3, 1, dtype=torch.float64, requires_grad=True)
    start = (torch.randn(3, 1, dtype=torch.float64, requires_grad=True), torch.randn(3, 1, dtype=torch.float64))
    angle = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    output, end = unroll(turn, x, start, angle, compiled=compiled)
    expected = closed_form(x, start, 0.3)
    np.testing.assert_allclose(output.detach().numpy(), expected.real, rtol=0, atol=1e-12)
    np.testing.assert_allclose(end[1].detach().numpy(), expected[-1].imag, rtol=0, atol=1e-12)
    end[0].sum().backward()
    assert x.grad is not None
    assert start[0].grad is not None
    assert angle.grad is not None
    powers = np.cos(0.3 * np.arange(steps - 1, -1, -1))[:, None, None]
    np.testing.assert_allclose(x.grad.numpy(), np.broadcast_to(powers, x.shape), rtol=0, atol=1e-12)
    np.testing.assert_allclose(start[0].grad.numpy(), np.cos(0.3 * steps), rtol=0, atol=1e-12)
    bent = sum((closed_form(x, start, a)[-1].real.sum() * sign for a, sign in ((0.3 + 1e-6, 1), (0.3 - 1e-6, -1))), 0.0)
    assert angle.grad.item() == pytest.approx(bent / 2e-6, rel=1e-6, abs=1e-7)


def pair(dtype: torch.dtype = torch.float64, **keys: Any) -> tuple[AntisymmetricRNN, AntisymmetricRNN]:
    """One layer that steps, and its compiled copy."""
    torch.manual_seed(0)
    model = AntisymmetricRNN(3, 6, **{"diffusion": 0.2, "step_size": 0.5, **keys}).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = deepcopy(model)
    assert compile_steps(other)
    return model, other


def everything(model: AntisymmetricRNN, x: Tensor, state: Tensor | None, windows: int = 1) -> list[Tensor]:
    """Outputs, end and all gradients; several windows are one graph."""
    x = x.clone().requires_grad_()
    start = None if state is None else state.clone().requires_grad_()
    torch.manual_seed(3)  # of dropout
    outputs, end = [], start
    for part in x.chunk(windows):
        y, end = model(part, end)
        outputs.append(y)
    assert end is not None
    (sum(y.sin().sum() for y in outputs) + end.square().sum()).backward()
    leaves = [x, *([] if start is None else [start]), *model.parameters()]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == len(leaves)
    model.zero_grad()
    return [*(y.detach() for y in outputs), end.detach(), *gradients]


def forms() -> int:
    """How often something was compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@slow
@pytest.mark.parametrize("gated", [True, False])
def test_outputs_states_and_gradients_are_those_of_the_plain_loop_whatever_the_window(gated: bool) -> None:
    model, compiled = pair(gated=gated, layers=2, dropout=0.4)
    before, counts = forms(), []
    for steps, batch, given in (
        (28, 6, False),
        (29, 6, True),
        (8, 4, True),
        (16, 3, False),
        (33, 17, True),
        (1, 4, True),
    ):
        x = torch.randn(steps, batch, 3, dtype=torch.float64)
        state = torch.randn(2, batch, 6, dtype=torch.float64) if given else None
        for windows in (1, 2) if steps > 1 else (1,):
            for one, other in zip(
                everything(model, x, state, windows), everything(compiled, x, state, windows), strict=True
            ):
                torch.testing.assert_close(other, one, rtol=0, atol=1e-11)
        counts.append(forms())
    assert set(counts) == {before + 1}, "one form for windows of any length and any batch but of one sequence"
    x, start = torch.randn(20, 5, 3, dtype=torch.float64), torch.zeros(2, 5, 6, dtype=torch.float64)
    model.eval()
    compiled.eval()
    with torch.no_grad():
        for steps in (20, 9, 13):
            for one, other in zip(model(x[:steps], start), compiled(x[:steps], start), strict=True):
                torch.testing.assert_close(other, one, rtol=0, atol=1e-11)
                assert not other.requires_grad
    assert forms() == counts[0] + 1, "and one without gradients"


@slow
@pytest.mark.parametrize("half", [False, True])
def test_single_precision_and_autocast(half: bool) -> None:
    model, compiled = pair(torch.float32)
    x = torch.randn(19, 4, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found, expected = (everything(each, x, None) for each in (compiled, model))
    exact = everything(deepcopy(model).double(), x.double(), None)
    for one, other, true in zip(expected, found, exact, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            other.double(), true, rtol=0.05 if half else 1e-5, atol=(0.05 if half else 1e-5) * true.abs().max().item()
        )


@slow
def test_frozen_weights_and_a_copy_saved_after_use(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Network(recurrent_layer("antisymmetric", 3, 6), 6, 2)
    plain, x = deepcopy(model), torch.randn(18, 4, 3)
    assert compile_steps(model)
    expected = plain(x)[0].detach()
    torch.testing.assert_close(model(x)[0].detach(), expected, rtol=0, atol=1e-6)
    for other in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.recurrent.compiled
        torch.testing.assert_close(other(x)[0].detach(), expected, rtol=0, atol=1e-6)
    save_network(model, tmp_path / "one", {})
    save_network(plain, tmp_path / "other", {})
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert torch.equal(load_network(tmp_path / "one")(x)[0], expected), "as exported it steps"
    for parameter in model.recurrent.parameters():
        parameter.requires_grad_(False)
    state = detach(model(x)[1])
    assert not model.recurrent(x, state)[0].requires_grad
    torch.testing.assert_close(model(x)[0].detach(), expected, rtol=0, atol=1e-6)


def test_compiling_changes_nothing_that_is_saved() -> None:
    torch.manual_seed(0)
    model = Network(recurrent_layer("antisymmetric", 3, 6, layers=2), 6, 2)
    described, names = model.describe(), list(model.state_dict())
    assert compile_steps(model)
    assert model.describe() == described
    assert list(model.state_dict()) == names
    assert list(model.buffers()) == []
    assert not AntisymmetricRNN(3, 6).compiled, "of this network alone"


def test_a_network_without_steps_says_so(subtests: pytest.Subtests) -> None:
    for cell in ("lstm", "gru", "rnn", "mingru", "minlstm", "lru", "trellis"):
        with subtests.test(cell=cell):
            assert not compile_steps(Network(recurrent_layer(cell, 3, 6), 6, 2))
            assert not compile_steps(nn.Linear(2, 2))


WITHOUT_COMPILER = """
import json, logging, torch
from fptt_dist.models import compile_steps
from fptt_dist.models.cells.antisymmetric import AntisymmetricRNN
torch.manual_seed(0)
model, x = AntisymmetricRNN(3, 6), torch.randn(20, 4, 3)
expected = model(x)[0]
compile_steps(model)
said = []
logging.getLogger("fptt_dist").addFilter(lambda record: said.append(record.getMessage()) or False)
same = [torch.equal(model(x)[0], expected) for _ in range(2)]
model(x)[0].sum().backward()
print(json.dumps([said, same]))
"""


@slow
def test_without_a_compiler_the_steps_are_run_and_the_log_says_why_once(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    said, same = json.loads(done.stdout)
    assert same == [True, True]
    assert len(said) == 1
    assert said[0].startswith("_gated_step is not compiled but run step by step: ")
    assert "compiler" in said[0]


def broken(state: Tensor, x_t: Tensor, weight: Tensor) -> Tensor:
    return state @ weight + x_t


@slow
def test_a_mistake_in_a_step_is_told_as_without_compiling(caplog: pytest.LogCaptureFixture) -> None:
    x, state, weight = torch.randn(9, 2, 3), torch.zeros(2, 3), torch.randn(4, 3)
    with caplog.at_level(logging.CRITICAL, "fptt_dist"), pytest.raises(RuntimeError, match="cannot be multiplied"):
        unroll(broken, x, state, weight, compiled=True)
