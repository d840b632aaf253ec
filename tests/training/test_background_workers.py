"""Two workers whose threads save together while their main threads are in collectives of their own."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fptt_dist.parallel import LaunchEnvironment, LostWorkerError
from fptt_dist.parallel.comm import errors
from fptt_dist.parallel.comm.communicator import GroupCommunicator
from fptt_dist.training.checkpoint.async_store import AsyncCheckpointStore
from fptt_dist.training.checkpoint.store import CheckpointStore, read_tensors, read_values, validate
from tests.parallel.pool import Pool
from tests.training.test_background import Gate, save

CPU = torch.device("cpu")


def save_while_summing(environment: LaunchEnvironment, root: Path, sums: int) -> list[float]:
    """The results of `sums` sums during each of two saves; the first save may end only when its sums are done."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    savers = GroupCommunicator([0, 1], group, CPU)
    rank = environment.rank
    with pytest.MonkeyPatch.context() as monkeypatch:
        gate = Gate(monkeypatch)
        store = AsyncCheckpointStore(root, rank=rank, world=2, wait_for_all=lambda name: savers.barrier(name=name))
        weights = torch.zeros(4)
        seen = []
        for step in (1, 2):
            own = {"own.safetensors": {"m": torch.tensor([float(rank), float(step)])}}
            store.save(step, {"model.safetensors": {"w": weights}}, own, best=step == 1)
            for _ in range(sums):
                weights += rank + 1
                dist.all_reduce(weights)
                weights /= 2
                seen.append(float(weights[0]))
            assert step == 2 or store.saved is None
            gate.opened.set()
        store.wait()
        assert store.resolve_pointer("best") == store.path_of(1)
        assert store.resolve_pointer("latest") == store.newest() == store.saved == store.path_of(2)
    return seen


def test_workers_save_while_they_train(pool: Pool, tmp_path: Path) -> None:
    seen = pool.run(save_while_summing, tmp_path, 20)
    assert seen == [[1.5 * (n + 1) for n in range(40)]] * 2
    for step, value in ((1, 0.0), (2, 30.0)):
        folder = tmp_path / f"step-{step:08d}"
        assert validate(folder) is None
        assert read_values(folder, "manifest.json")["world"] == 2
        assert read_tensors(folder, "model.safetensors")["w"].tolist() == [value] * 4
        for rank in (0, 1):
            assert read_tensors(folder / "rank" / str(rank), "own.safetensors")["m"].tolist() == [rank, step]


def save_alone(environment: LaunchEnvironment, root: Path) -> tuple[str, list[int]] | None:
    """Rank 1 does not come; what rank 0 is told."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=1.0))
    assert isinstance(group, dist.ProcessGroup)
    savers = GroupCommunicator([0, 1], group, CPU)
    store = AsyncCheckpointStore(
        root, rank=environment.rank, world=2, wait_for_all=lambda name: savers.barrier(name=name)
    )
    found = None
    if environment.rank == 0:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(errors, "GRACE", 0.2)
            save(store, 1)
            with pytest.raises(LostWorkerError) as caught:
                store.wait()
            store.wait()
            found = caught.value.collective, caught.value.silent
    dist.barrier()
    return found


def test_a_worker_that_does_not_save_is_named(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(save_alone, tmp_path) == [("checkpoint begins", [1]), None]
    assert CheckpointStore(tmp_path).newest() is None
