"""The fused update against the numpy reference and the plain path; when it is not taken, and what is said then."""

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._inductor import config as inductor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, RMSprop

from fptt_dist.algorithm import FPTT
from fptt_dist.algorithm.fused.kernel import Kernel
from fptt_dist.algorithm.fused.update import MOST_KERNELS, FusedUpdate

from .helpers import BASES, noise, parameters, same_bits, set_gradients, snapshot, two_groups
from .test_golden import CLIPS, compare

FUSIBLE = ("sgd", "sgd_momentum", "sgd_nesterov", "sgd_dampening", "adam", "adamw")
OPTIONS: dict[str, Any] = {"alpha": 0.4, "max_norm": 1.5}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """The kernels that ran, one entry an update."""
    found: list[Kernel] = []
    run = Kernel.__call__

    def counted(self: Kernel, tensors: list[Tensor], rates: Tensor) -> None:
        found.append(self)
        run(self, tensors, rates)

    monkeypatch.setattr(Kernel, "__call__", counted)
    return found


@pytest.fixture(autouse=True)
def no_warning(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.WARNING, logger="fptt_dist")
    yield
    caplog.clear()


def drive(optimizer: FPTT, params: list[Parameter], start: int, stop: int) -> None:
    """Updates from gradients that are a function of the update's number."""
    for t in range(start, stop):
        set_gradients(params, noise(t, params))
        optimizer.step()


def engine(optimizer: FPTT) -> FusedUpdate:
    assert optimizer.fused_update is not None
    return optimizer.fused_update


def near(left: list[Tensor], right: list[Tensor]) -> None:
    torch.testing.assert_close(left, right, rtol=3e-6, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSIBLE)
def test_it_is_the_reference(name: str, calls: list[Kernel]) -> None:
    """Two groups with rates of their own, α that changes, resets: 30 updates, W, W̄ and λ at each."""
    compare(BASES[name], torch.float64, 1e-11, 1e-12, fused=True, **OPTIONS)
    assert len(calls) == 29
    assert len(set(map(id, calls))) == 1, "a change of lr or α compiles nothing anew"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", CLIPS["unclipped"]),
        ("adam", CLIPS["gradient"]),
        ("sgd_momentum", CLIPS["gradient"]),
        ("adam", {"metric": "preconditioned", **CLIPS["total"]}),
        ("adamw", {"metric": "preconditioned", "beta": 0.6, "dual_weight": 0.8, "prox_weight": 1.2}),
    ],
)
def test_every_variant_is_the_reference(name: str, options: dict[str, Any], calls: list[Kernel]) -> None:
    compare(BASES[name], torch.float64, 1e-11, 1e-12, fused=True, alpha=0.4, **options)
    assert len(calls) == 29


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd_nesterov", "adam"])
def test_it_is_as_exact_as_the_plain_path(name: str) -> None:
    """In float32 it is as near to the float64 trajectory as the plain path is, and near to that."""
    shapes = ((64, 48), (200,), (1,), ())
    ends = []
    for dtype, fused in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        params = parameters(dtype, shapes)
        optimizer = two_groups(params, BASES[name], fused=fused, **OPTIONS)
        drive(optimizer, params, 0, 40)
        ends.append([t.double() for p in params for t in (p.detach(), *optimizer.slow_state()[1:][0])][: len(params)])
    fused, plain, exact = ends
    error = [max(float((a - b).abs().max()) for a, b in zip(each, exact, strict=True)) for each in (fused, plain)]
    assert error[0] <= 2.0 * error[1] + 1e-7
    near(fused, plain)


@pytest.mark.slow
def test_without_a_pull_it_is_the_base_optimizer(calls: list[Kernel]) -> None:
    params, others = parameters(), parameters()
    optimizer, base = FPTT(AdamW(params, lr=0.05), alpha=0.0, fused=True), AdamW(others, lr=0.05)
    for t in range(10):
        for each, own in ((optimizer, params), (base, others)):
            set_gradients(own, noise(t, own))
            each.step()
    near([p.detach() for p in params], [p.detach() for p in others])
    assert len(calls) == 9


@pytest.mark.slow
def test_a_parameter_without_a_gradient_is_left_alone(calls: list[Kernel]) -> None:
    """Its update, and those after it while the counts of steps differ, are the plain path's."""
    ends = []
    for fused in (True, False):
        params = parameters()
        optimizer = two_groups(params, BASES["adam"], fused=fused, **OPTIONS)
        drive(optimizer, params, 0, 4)
        before = snapshot(optimizer, params[1:2])
        set_gradients(params, [g if i != 1 else None for i, g in enumerate(noise(4, params))])
        optimizer.step()
        assert same_bits(before, snapshot(optimizer, params[1:2]))
        drive(optimizer, params, 5, 8)
        ends.append(snapshot(optimizer, params))
        if fused:
            assert engine(optimizer).waiting == "parameters have had different numbers of steps"
    assert len(calls) == 3
    near(*ends)


@pytest.mark.slow
def test_saved_and_loaded_it_goes_on_bit_for_bit(calls: list[Kernel]) -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], fused=True, **OPTIONS)
    drive(optimizer, params, 0, 4)
    weights, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    drive(optimizer, params, 4, 9)
    expected = snapshot(optimizer, params)

    again = parameters(seed=5)
    other = two_groups(again, BASES["adam"], fused=True, **OPTIONS)
    drive(other, again, 0, 2)  # it has compiled, and holds tensors that loading replaces
    with torch.no_grad():
        for p, value in zip(again, weights, strict=True):
            p.copy_(value)
    other.load_state_dict(state)
    drive(other, again, 4, 9)
    assert same_bits(expected, snapshot(other, again))
    assert len(calls) == 3 + 5 + 1 + 5


@pytest.mark.slow
def test_a_plan_is_the_steps_themselves(calls: list[Kernel]) -> None:
    """Coefficients worked out before, read row by row, and the counts moved on after: the same bits."""
    ends = []
    for planned in (True, False):
        params = parameters()
        optimizer = two_groups(params, BASES["adam"], fused=True, **OPTIONS)
        drive(optimizer, params, 0, 3)
        rates = engine(optimizer).plan(4)
        assert rates is not None
        if planned:
            with engine(optimizer).following(list(rates.unbind())):
                drive(optimizer, params, 3, 7)
            engine(optimizer).count(4)
        else:
            drive(optimizer, params, 3, 7)
        drive(optimizer, params, 7, 9)
        ends.append(snapshot(optimizer, params))
    assert same_bits(*ends)
    assert len(calls) == 2 * 8


@pytest.mark.slow
def test_in_mid_drop_it_is_the_plain_path_and_so_is_a_plan(calls: list[Kernel]) -> None:
    """The preconditioned metric's reference rates, by group, while the learning rates fall, to 0 for an update."""
    ends, rates = [], []
    for fused, planned in ((True, False), (True, True), (False, False)):
        params = parameters(torch.float64)
        optimizer = two_groups(params, BASES["adam"], fused=fused, metric="preconditioned", **OPTIONS)
        first = [group["lr"] for group in optimizer.param_groups]
        for t in range(16):
            for group, lr in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = lr * (1.0 if t < 5 else 0.0 if t == 8 else 1e-30 if t > 13 else 1e-4)
            if t == 14:  # one parameter of a group has another rate than the rest: these updates are the plain path's
                optimizer.state[params[0]]["reference_rate"] *= 1.5
            if not (planned and 9 <= t < 12):
                drive(optimizer, params, t, t + 1)
            elif t == 9:
                rows = engine(optimizer).plan(3)
                assert rows is not None
                with engine(optimizer).following(list(rows.unbind())):
                    drive(optimizer, params, 9, 12)
                engine(optimizer).count(3)
        ends.append(snapshot(optimizer, params))
        rates.append([optimizer.state[p]["reference_rate"] for p in params])
    assert len(calls) == 2 * 13
    assert same_bits(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-11, atol=1e-12)
    assert rates[0] == rates[1] == rates[2]
    assert rates[0][0] == 1.5 * rates[0][1] > rates[0][1] == 2.0 * rates[0][2]


@pytest.mark.slow
def test_a_plan_that_cannot_be_kept_is_an_error() -> None:
    params = parameters()
    optimizer = two_groups(params, BASES["adam"], fused=True, **OPTIONS)
    assert engine(optimizer).plan(2) is None
    drive(optimizer, params, 0, 3)
    rates = engine(optimizer).plan(1)
    assert rates is not None
    params[0].grad = None
    with (
        engine(optimizer).following(list(rates.unbind())),
        pytest.raises(RuntimeError, match="planned cannot be fused"),
    ):
        optimizer.step()


@pytest.mark.slow
def test_gradients_that_lie_otherwise_in_memory(calls: list[Kernel]) -> None:
    ends = []
    for fused in (True, False):
        params = parameters(shapes=((6, 5), (4, 3)))
        optimizer = FPTT(Adam(params, lr=0.05), fused=fused, **OPTIONS)
        for t in range(5):
            for p, g in zip(params, noise(t, params), strict=True):
                p.grad = g.t().contiguous().t() if t % 2 else g
            optimizer.step()
        ends.append(snapshot(optimizer, params))
    near(*ends)
    assert len(calls) == 4


@pytest.mark.slow
def test_copies_compile_for_themselves(calls: list[Kernel]) -> None:
    params = parameters()
    optimizer = FPTT(Adam(params, lr=0.05), fused=True, **OPTIONS)
    drive(optimizer, params, 0, 3)
    ends = []
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), optimizer):
        own = [p for group in other.param_groups for p in group["params"]]
        drive(other, own, 3, 5)
        assert engine(other).problem is None
        ends.append(snapshot(other, own))
    assert same_bits(ends[0], ends[2])
    assert same_bits(ends[1], ends[2])
    assert len(calls) == 2 + 3 * 2


@pytest.mark.slow
def test_without_a_compiler_the_plain_path_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    ends = []
    with inductor.patch({"cpp.cxx": ("/nowhere/g++",), "fx_graph_cache": False}):
        for fused in (True, False):
            params = parameters(shapes=((7, 3), (11,)))  # shapes that no other test has compiled
            optimizer = FPTT(Adam(params, lr=0.05), fused=fused, **OPTIONS)
            drive(optimizer, params, 0, 5)
            ends.append(snapshot(optimizer, params))
            assert (optimizer.fused_update is not None and optimizer.fused_update.problem is not None) == fused
    assert same_bits(*ends)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["the update is not fused"]


@pytest.mark.slow
def test_constants_that_keep_changing_are_left_to_the_plain_path(
    calls: list[Kernel], caplog: pytest.LogCaptureFixture
) -> None:
    params = parameters(shapes=((3,),))
    optimizer = FPTT(SGD(params, lr=0.05, momentum=0.9), fused=True, **OPTIONS)
    for t in range(8):
        optimizer.param_groups[0]["momentum"] = 0.9 - 0.01 * t
        drive(optimizer, params, t, t + 1)
    assert len(calls) == MOST_KERNELS
    assert "change from update to update" in str(engine(optimizer).problem)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (RMSprop, {}, "SGD, Adam and AdamW can be fused, not RMSprop"),
        (SGD, {"update_rule": "proximal"}, 'update_rule="gradient" can be fused, not "proximal"'),
        (lambda p, lr: Adam(p, lr=lr, amsgrad=True), {}, "amsgrad, capturable and differentiable"),
    ],
)
def test_what_cannot_be_fused_is_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FPTT(make(parameters(), lr=0.1), alpha=0.5, fused=True, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: setattr(o, "norm_reduce", lambda total: total), "sharded weights"),
        (lambda o: o.base.register_step_pre_hook(lambda *_: None), "the base optimizer has hooks"),
        (lambda o: o.param_groups[0].update(lr=torch.tensor(0.05)), "a learning rate that is a tensor"),
    ],
)
def test_what_comes_up_later_is_said_once(change: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    params = parameters()
    optimizer = FPTT(Adam(params, lr=0.05), fused=True, **OPTIONS)
    change(optimizer)
    drive(optimizer, params, 0, 4)
    assert message in str(engine(optimizer).problem)
    assert len(caplog.records) == 1


def test_shards_are_left_to_the_plain_path_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for fused in (True, False):
            params = [Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in parameters()]
            optimizer = FPTT(Adam(params, lr=0.05), alpha=0.4, fused=fused)
            for t in range(3):
                gradients = noise(t, parameters())
                set_gradients(params, [distribute_tensor(g, mesh, [Shard(0)]) for g in gradients])
                optimizer.step()
            ends.append([p.full_tensor().detach() for p in params])  # type: ignore[attr-defined]
            assert ("DTensor" in str(engine(optimizer).problem)) if fused else optimizer.fused_update is None
    finally:
        dist.destroy_process_group()
    assert same_bits(*ends)
    assert len(caplog.records) == 1
    assert "the update is not fused: weights or gradients are no plain tensors but DTensor" in caplog.text


def test_a_parameter_that_never_has_a_gradient_is_said_once_and_readable(caplog: pytest.LogCaptureFixture) -> None:
    params = parameters()
    optimizer = FPTT(Adam(params, lr=0.05), fused=True, **OPTIONS)
    for t in range(4):
        set_gradients(params, [*noise(t, params)[:2], None])
        optimizer.step()
    assert engine(optimizer).problem is None
    assert engine(optimizer).waiting == "a parameter has no gradient, or a sparse one"
    assert [r.getMessage() for r in caplog.records] == [
        "the update is not fused as long as a parameter has no gradient, or a sparse one"
    ]
