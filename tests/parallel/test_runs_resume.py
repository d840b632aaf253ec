"""A run of several workers, interrupted at any batch, resumes bit for bit on each rank."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parallel.fault_driver import WORDS, again, broken, copied, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, tiny
from tests.training.helpers import content, differing, result, without_clock

BATCHES = 6  # of 4 windows; 4 batches an epoch
MIDDLE = 5  # 20 windows: between two syncs, or before the first one; in the second epoch
CASES: dict[str, dict[str, Any]] = {
    "flat": {"strategy": "data_parallel"},
    "ddp": {"strategy": "data_parallel", "reduce": "ddp"},
    "every 1": {"strategy": "consensus", "sync_every": 1},
    "every 7 delay 2": {"strategy": "consensus", "sync_every": 7, "sync_delay": 2},
    "every 5 delay 4 bf16 center": {
        "strategy": "consensus",
        "sync_every": 5,
        "sync_delay": 4,
        "sync_dtype": "bf16",
        "weight_sync": "center",
    },
    "start after worker": {"strategy": "consensus", "sync_every": 3, "warmup_updates": 18, "dual": "local"},
    "worker admm": {
        "strategy": "consensus",
        "sync_every": 7,
        "dual": "local",
        "dual_update": "admm",
    },
    "machines delay": {"strategy": "hierarchical", "sync_every": 7, "sync_delay": 2},
}
SLOW: dict[str, dict[str, Any]] = {
    "ddp bf16": {"strategy": "data_parallel", "reduce": "ddp", "comm_hook": "bf16"},
    "every 3": {"strategy": "consensus", "sync_every": 3},
    "bf16": {"strategy": "consensus", "sync_every": 3, "sync_dtype": "bf16"},
    "center": {"strategy": "consensus", "sync_every": 3, "weight_sync": "center"},
    "start after": {"strategy": "consensus", "sync_every": 3, "warmup_updates": 18},
    "worker bf16": {"strategy": "consensus", "sync_every": 7, "dual": "local", "sync_dtype": "bf16"},
    "machines worker": {"strategy": "hierarchical", "sync_every": 3, "dual": "local"},
}
DELAYED = {"every 7 delay 2": 2, "machines delay": 2, "every 5 delay 4 bf16 center": 2}  # a batch with one under way


def layout(case: str) -> dict[str, int]:
    """How many workers, on how many machines."""
    return {"world": 4, "machines": 2} if "machines" in case else {"world": 2, "machines": 1}


def keys(case: str) -> dict[str, Any]:
    return {**WORDS, "parallel": {**CASES, **SLOW}[case], "train.max_batches": BATCHES, "checkpoint.every_batches": 1}


def step(folder: Path, batch: int) -> Path:
    return folder / f"checkpoints/step-{batch:08d}"


@dataclass
class Straight:
    """An uninterrupted run: its folder, outcomes by rank, and the tensors of its checkpoints by batch."""

    case: str
    folder: Path
    outcomes: list[Outcome]

    def held(self, batch: int) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        return tensors(step(self.folder, batch))

    def own(self, batch: int, rank: int) -> dict[str, Tensor]:
        """Those of one worker."""
        held, start = self.held(batch), f"rank/{rank}/"
        return {name.removeprefix(start): tensor for name, tensor in held.items() if name.startswith(start)}


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    return {name: value for name, value in content(checkpoint).items() if isinstance(value, Tensor)}


QUICK = [(case, [DELAYED.get(case, 3)]) for case in CASES]
MORE = [
    (case, [[1, 4], [5], [2], [1, 5]][i % 4])
    for i, case in enumerate((*SLOW, *(case for case in CASES if case != "ddp")))
]


@pytest.mark.parametrize(
    ("case", "batches"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_goes_on_bit_for_bit_and_the_workers_agree(pool: Pool, tmp_path: Path, case: str, batches: list[int]) -> None:
    where = layout(case)
    there = tmp_path / "run"
    outcomes = pool.run(copied, tiny(there, keys(case)), batches, where["machines"], world=where["world"])
    for batch in batches:
        here = tmp_path / f"run-{batch}"
        rarely = {**keys(case), "checkpoint.every_batches": 100}
        resumed = pool.run(whole, again(here, rarely), where["machines"], world=where["world"])
        assert differing(content(step(there, BATCHES)), content(step(here, BATCHES))) == []
        assert [outcome.values for outcome in resumed] == [outcome.values for outcome in outcomes]
        assert without_clock(result(here)) == without_clock(result(there))
    run = Straight(case, there, outcomes)
    check_end(run)
    if keys(case)["parallel"]["strategy"] == "data_parallel":
        check_written_once(run)
    else:
        check_reset(run)
        check_middle(run)
    if case in DELAYED:
        check_under_way(run)


def check_end(run: Straight) -> None:
    """The end makes a sync: the workers' W are equal; W̄ and u are too."""
    manifest = json.loads((step(run.folder, BATCHES) / "manifest.json").read_text())
    assert manifest["world"] == layout(run.case)["world"]
    assert not any(name.endswith(":due") for name in run.held(BATCHES)), "the end waits for none"
    first, *others = run.outcomes
    for other in others:
        for name, tensor in first.weights.items():
            assert torch.equal(other.weights[name], tensor), name
        for name, tensor in first.optimizer.items():
            if name.endswith(("/center", "/scaled_dual")):
                assert equal(other.optimizer[name], tensor, run.case), name


def check_written_once(run: Straight) -> None:
    """Equal workers write their weights once."""
    files = {path.relative_to(step(run.folder, MIDDLE)).as_posix() for path in step(run.folder, MIDDLE).rglob("*.s*")}
    assert {"model.safetensors", "optimizer.safetensors"} <= files
    assert not any(name.startswith("rank/") and ("model" in name or "optimizer" in name) for name in files)


def check_reset(run: Straight) -> None:
    """Batch 4 ends the first epoch, and a sync that was sent before its last updates is late."""
    first, *others = (run.own(4, rank) for rank in range(layout(run.case)["world"]))
    names = [name for name in first if "safetensors:recurrent.weight_hh_l0" in name]
    slow = [name for name in names if name.endswith(("/center", "/scaled_dual"))]
    weights = [name for name in names if "model.safetensors" in name]
    assert len(slow) == 2
    for name in [*slow, *weights]:
        for other in others:
            assert equal(other[name], first[name], run.case), name


def check_middle(run: Straight) -> None:
    """In the middle of an interval workers have their own, and write once what is equal everywhere."""
    world = layout(run.case)["world"]
    held = [run.own(MIDDLE, rank) for rank in range(world)]
    assert len({own["random.safetensors:torch"].numpy().tobytes() for own in held}) == world
    files = [path.name for path in step(run.folder, MIDDLE).glob("*.safetensors")]
    assert sorted(files) == ["sync.safetensors", "task.safetensors"]
    if run.case == "every 1":
        return  # all are equal
    name = "recurrent.weight_hh_l0"
    differ = [f"model.safetensors:{name}", *(f"optimizer.safetensors:{name}/{x}" for x in ("center", "scaled_dual"))]
    if run.case.startswith("worker"):
        differ.append(f"sync.safetensors:dual/{name}")
    together = [(0, 1), (2, 3)] if "machines" in run.case else []
    for thing in differ:
        for one in range(world):
            for other in range(one + 1, world):
                same = torch.equal(held[one][thing], held[other][thing])
                assert same == ((one, other) in together), (thing, one, other)


def check_under_way(run: Straight) -> None:
    """A sync is in flight where the run was interrupted."""
    batch = DELAYED[run.case]
    for rank in range(layout(run.case)["world"]):
        departed, due = run.own(batch, rank)["sync.safetensors:due"].tolist()
        assert departed <= 4 * batch < due


def equal(one: Tensor, other: Tensor, case: str) -> bool:
    """Bit for bit; with every=1 W̄ and u are not sent, each worker finds their means by itself, to rounding."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7) if case == "every 1" else torch.equal(one, other)


@pytest.mark.slow
def test_ddp_on_four_workers_goes_on_to_rounding(pool: Pool, tmp_path: Path) -> None:
    pool.run(whole, tiny(tmp_path / "straight", keys("ddp")), world=4)
    pool.run(broken, tiny(tmp_path / "run", keys("ddp")), 3, world=4)
    pool.run(whole, again(tmp_path / "run", keys("ddp")), world=4)
    one, other = (tensors(step(tmp_path / name, BATCHES)) for name in ("straight", "run"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
