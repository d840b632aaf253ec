"""The limiting case: one worker that holds all parts is a single process, bit for bit; on a CPU, and on a GPU."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fptt_dist.algorithm import FPTT, detach
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.parallel import DeepspeedZero, Engine, FullyShard, GroupCommunicator, LaunchEnvironment, NoSync
from tests.parallel.pool import Pool
from tests.parallel.toys import single_worker, told

KINDS = ["fsdp", "zero 1", "zero 2", "zero 3"]
WINDOWS = 4


def engine_of(kind: str, everyone: GroupCommunicator, offload: bool) -> Engine:
    if kind == "single":
        return single_worker()
    if kind == "fsdp":
        return Engine(everyone, FullyShard(everyone, 1.0, offload=offload), NoSync())
    zero = DeepspeedZero(everyone, 1.0, stage=int(kind[-1]), sequences=6, offload=offload)
    return Engine(everyone, zero, NoSync())


def trained(kind: str, device: torch.device, everyone: GroupCommunicator, offload: bool) -> dict[str, Tensor]:
    """Weights and W̄ after a few batches, on the CPU."""
    torch.manual_seed(0)
    engine = engine_of(kind, everyone, offload)
    engine.prepare(Network(recurrent_layer("lstm", 2, 5, layers=2), 5, 1).to(device))
    base = torch.optim.AdamW(engine.placement.parameters(), lr=1e-2)
    # No clipping: the norm of one flat tensor is another one, to rounding, than that of many.
    optimizer = FPTT(base, alpha=0.5, metric="preconditioned")
    engine.attach(optimizer)
    data = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(20, 6, 2, generator=data).to(device)
        y = torch.randn(6, 1, generator=data).to(device)
        state = None
        with engine.placement.collective_errors():
            for part in x.chunk(WINDOWS):
                output, state = engine.placement.module(part, detach(state))
                engine.backward((output[-1] - y).square().mean(), last=True)
                engine.step()
                engine.after_update()
        assert told(engine).all_finite()
        optimizer.reset_to_center(dual=False)
        engine.placement.on_params_written()
    found: dict[str, Tensor] = {}
    for weights in ("weights", "center"):
        with engine.eval_weights(weights) as module:
            found |= {f"{weights} {name}": p.detach().cpu().clone() for name, p in module.named_parameters()}
    return found


def alone(environment: LaunchEnvironment, kinds: list[str], device: str, offload: bool) -> list[dict[str, Tensor]]:
    """The same for each kind, in a group of this process."""
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    place = torch.device(device)
    return [trained(kind, place, GroupCommunicator([0], None, place), offload) for kind in kinds]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("device", "offload"),
    [
        ("cpu", False),
        pytest.param("cuda:0", False, marks=pytest.mark.gpu),
        pytest.param("cuda:0", True, marks=pytest.mark.gpu),
    ],
)
def test_one_worker_is_a_single_process(pool: Pool, kind: str, device: str, offload: bool) -> None:
    [[single, sharded]] = pool.run(alone, ["single", kind], device, offload, world=1)
    assert single.keys() == sharded.keys()
    for name, expected in single.items():
        if device == "cpu":
            assert torch.equal(sharded[name], expected), name
        else:
            torch.testing.assert_close(sharded[name], expected, rtol=1e-5, atol=1e-6)


def test_the_case_tests_something(pool: Pool) -> None:
    [[single]] = pool.run(alone, ["single"], "cpu", False, world=1)
    torch.manual_seed(0)
    start: dict[str, Any] = Network(recurrent_layer("lstm", 2, 5, layers=2), 5, 1).state_dict()
    assert max(float((single[f"weights {name}"] - p).abs().max()) for name, p in start.items()) > 1e-2
