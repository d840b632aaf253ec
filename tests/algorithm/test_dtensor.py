"""DTensor parameters, on a mesh of one process: the same trajectory as whole tensors, and the same seams."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fptt_dist.algorithm.diagnostics import norms

from .helpers import BASES, noise, parameters, two_groups

VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "proximal": {"update_rule": "proximal"},
    "clipped": {"max_norm": 0.5},
    "preconditioned": {"metric": "preconditioned"},
    "gradient clipped": {"max_norm": 0.5, "clip_scope": "gradient"},
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    """A gloo mesh of this process alone."""
    store: Path = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def loss_of(model: nn.Module, optimizer: Optimizer, x: torch.Tensor) -> torch.Tensor:
    """The loss of a window, its gradients computed."""
    optimizer.zero_grad()
    loss = (model(x) - 1.0).square().mean()
    loss.backward()
    return loss


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor behind a DTensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def test_sharded_parameters_follow_the_whole_ones(subtests: pytest.Subtests, mesh: DeviceMesh) -> None:
    for name, variant in [
        (name, variant)
        for name in ("sgd_momentum", "adamw", "rmsprop")
        for variant in VARIANTS
        if (name, variant) != ("sgd_momentum", "preconditioned")  # it has no second moments
    ]:
        with subtests.test(name=name, variant=variant):
            control = parameters()
            params = [Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in parameters()]
            plain = two_groups(control, BASES[name], alpha=0.5, **VARIANTS[variant])
            optimizer = two_groups(params, BASES[name], alpha=0.5, **VARIANTS[variant])
            for t in range(6):
                for p, q, g in zip(params, control, noise(t, control), strict=True):
                    p.grad, q.grad = distribute_tensor(g.clone(), mesh, [Shard(0)]), g.clone()
                optimizer.step()
                plain.step()
            sharded, control_norms = norms(optimizer), norms(plain)
            for key, value in control_norms.items():
                torch.testing.assert_close(whole(sharded[key]), value, rtol=1e-5, atol=1e-6)
            optimizer.reset_to_center(weights=False)
            plain.reset_to_center(weights=False)
            for p, q in zip(params, control, strict=True):
                assert isinstance(p, DTensor)
                assert isinstance(optimizer.center(p), DTensor)
                torch.testing.assert_close(whole(p), whole(q), rtol=1e-6, atol=1e-7)
                torch.testing.assert_close(whole(optimizer.center(p)), plain.center(q), rtol=1e-6, atol=1e-7)
                assert (whole(q) - plain.center(q)).abs().max() > 1e-4
            with optimizer.at_center():
                assert torch.equal(whole(params[0]), whole(optimizer.center(params[0])))
            weights = [whole(p).clone() for p in params]
            optimizer.eval()
            assert torch.equal(whole(params[0]), whole(optimizer.center(params[0])))
            optimizer.train()
            assert all(torch.equal(whole(p), value) for p, value in zip(params, weights, strict=True))
            optimizer.reset_to_weights()
            assert torch.equal(whole(optimizer.center(params[0])), weights[0])


def test_sharded_weights_are_reset_to_the_center(mesh: DeviceMesh) -> None:
    params = [Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in parameters()]
    optimizer = two_groups(params, BASES["adam"], alpha=0.5)
    for p, g in zip(params, noise(0, parameters()), strict=True):
        p.grad = distribute_tensor(g, mesh, [Shard(0)])
    optimizer.step()
    assert not torch.equal(whole(params[0]), whole(optimizer.center(params[0])))
    optimizer.reset_to_center()
    assert torch.equal(whole(params[0]), whole(optimizer.center(params[0])))
    assert not whole(optimizer.dual(params[0])).any()


def test_a_saved_sharded_state_continues(mesh: DeviceMesh) -> None:
    def build() -> tuple[list[Parameter], Any]:
        params = [Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in parameters()]
        return params, two_groups(params, BASES["adam"], alpha=0.5)

    (params, optimizer), (others, other) = build(), build()
    for t in range(6):
        if t == 3:
            other.load_state_dict(optimizer.state_dict())
            with torch.no_grad():
                for p, q in zip(params, others, strict=True):
                    q.copy_(p)
            assert isinstance(other.center(others[0]), DTensor)
            for p in others:  # torch shares the moments it loads
                for key in ("exp_avg", "exp_avg_sq", "step"):
                    other.state[p][key] = other.state[p][key].clone()
        for side, o in ((params, optimizer), (others, other)):
            if o is optimizer or t >= 3:
                for p, g in zip(side, noise(t, parameters()), strict=True):
                    p.grad = distribute_tensor(g, mesh, [Shard(0)])
                o.step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(whole(p), whole(q))
        assert torch.equal(whole(optimizer.center(p)), whole(other.center(q)))


@pytest.mark.parametrize("variant", [*VARIANTS, "second_gradient"])
def test_fully_sharded_modules_train_like_whole_ones(mesh: DeviceMesh, variant: str) -> None:
    options = {"second_gradient": {"update_rule": "second_gradient"}, **VARIANTS}[variant]
    ends = []
    for shard in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        if shard:
            fully_shard(model, mesh=mesh)
        params = list(model.parameters())
        assert isinstance(params[0], DTensor) is shard
        optimizer = two_groups(params, BASES["adam"], alpha=0.5, **options)
        for t in range(5):
            x = noise(t, [torch.zeros(6, 3)])[0]

            optimizer.step(partial(loss_of, model, optimizer, x))
        with optimizer.at_center():
            read = model(torch.ones(2, 3)).detach()
        ends.append([whole(p) for p in params] + [whole(optimizer.center(p)) for p in params] + [whole(read)])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
