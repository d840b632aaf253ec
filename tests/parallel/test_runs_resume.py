"""A run of several workers that broke off at any batch goes on as if nothing had been, bit for bit, rank by rank."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parallel.fault_driver import WORDS, again, broken, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, tiny
from tests.training.helpers import content, differing, result, without_clock

BATCHES = 10  # of 4 windows; 4 batches an epoch
CASES: dict[str, dict[str, Any]] = {
    "flat": {"strategy": "gradient"},
    "ddp": {"strategy": "gradient", "reduce": "ddp"},
    "every 1": {"strategy": "consensus", "every": 1},
    "every 3": {"strategy": "consensus", "every": 3},
    "every 7": {"strategy": "consensus", "every": 7},
    "every 7 delay 2": {"strategy": "consensus", "every": 7, "delay": 2},
    "every 5 delay 4 bf16 center": {
        "strategy": "consensus",
        "every": 5,
        "delay": 4,
        "payload": "bf16",
        "weights": "center",
    },
    "bf16": {"strategy": "consensus", "every": 3, "payload": "bf16"},
    "center": {"strategy": "consensus", "every": 3, "weights": "center"},
    "kept": {"strategy": "consensus", "every": 3, "weights": "kept"},
    "start after": {"strategy": "consensus", "every": 3, "start_after": 18},
    "start after worker": {"strategy": "consensus", "every": 3, "start_after": 18, "dual": "worker"},
    "worker": {"strategy": "consensus", "every": 3, "dual": "worker"},
    "worker bf16": {"strategy": "consensus", "every": 7, "dual": "worker", "payload": "bf16"},
    "worker admm": {"strategy": "consensus", "every": 3, "dual": "worker", "order": "admm"},
    "worker tensor": {"strategy": "consensus", "every": 7, "dual": "worker", "scale": "tensor"},
    "machines": {"strategy": "hierarchical", "every": 3},
    "machines delay": {"strategy": "hierarchical", "every": 7, "delay": 2},
    "machines worker": {"strategy": "hierarchical", "every": 3, "dual": "worker"},
}
DELAYED = {"every 7 delay 2": 2, "machines delay": 2, "every 5 delay 4 bf16 center": 2}  # a batch with one under way
Straight = Callable[[str], tuple[Path, list[Outcome]]]


def layout(case: str) -> dict[str, int]:
    """How many workers, on how many machines."""
    return {"world": 4, "machines": 2} if "machines" in case else {"world": 2, "machines": 1}


def keys(case: str) -> dict[str, Any]:
    return {**WORDS, "parallel": CASES[case], "train.batches": BATCHES, "checkpoint.every": 1}


@pytest.fixture(scope="module")
def straight(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """An uninterrupted run of a case, trained once: its folder and outcomes."""
    done: dict[str, tuple[Path, list[Outcome]]] = {}

    def run(case: str) -> tuple[Path, list[Outcome]]:
        if case not in done:
            folder = tmp_path_factory.mktemp(case.replace(" ", "-")) / "run"
            where = layout(case)
            outcomes = pool.run(whole, tiny(folder, keys(case)), where["machines"], world=where["world"])
            done[case] = folder, outcomes
        return done[case]

    return run


def step(folder: Path, batch: int) -> Path:
    return folder / f"checkpoints/step-{batch:08d}"


QUICK = [(case, DELAYED.get(case, 3)) for case in CASES]  # 12 windows: 3 divides it, 7 does not
SLOW = [(case, batch) for case in CASES for batch in (1, 2, 4, 5, 7, 8) if (case, batch) not in QUICK]


@pytest.mark.parametrize(("case", "batch"), [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)])
def test_goes_on_bit_for_bit(pool: Pool, tmp_path: Path, straight: Straight, case: str, batch: int) -> None:
    there, outcomes = straight(case)
    where = layout(case)
    here = tmp_path / "run"
    pool.run(broken, tiny(here, keys(case)), batch, where["machines"], world=where["world"])
    assert differing(content(step(there, batch)), content(step(here, batch))) == []
    resumed = pool.run(whole, again(here, keys(case)), where["machines"], world=where["world"])
    assert differing(content(step(there, BATCHES)), content(step(here, BATCHES))) == []
    assert [outcome.values for outcome in resumed] == [outcome.values for outcome in outcomes]
    assert without_clock(result(here)) == without_clock(result(there))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [3, 4])
def test_ddp_on_four_workers_goes_on_to_rounding(pool: Pool, tmp_path: Path, batch: int) -> None:
    pool.run(whole, tiny(tmp_path / "straight", keys("ddp")), world=4)
    pool.run(broken, tiny(tmp_path / "run", keys("ddp")), batch, world=4)
    pool.run(whole, again(tmp_path / "run", keys("ddp")), world=4)
    one, other = (tensors(step(tmp_path / name, BATCHES)) for name in ("straight", "run"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    return {name: value for name, value in content(checkpoint).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("case", DELAYED)
def test_an_agreement_is_under_way_where_the_tests_break_off(straight: Straight, case: str) -> None:
    folder, _ = straight(case)
    world = layout(case)["world"]
    held = tensors(step(folder, DELAYED[case]))
    for rank in range(world):
        departed, due = held[f"rank/{rank}/strategy.safetensors:due"].tolist()
        assert departed <= 4 * DELAYED[case] < due
    assert not any(name.endswith(":due") for name in tensors(step(folder, BATCHES))), "the end waits for none"


@pytest.mark.parametrize("case", ["every 3", "every 7 delay 2", "worker", "start after", "machines"])
def test_workers_keep_their_own_and_share_the_rest_once(straight: Straight, case: str) -> None:
    """In the middle of an interval: batch 5 is 20 windows (with start_after=18 the first agreement is at 21)."""
    folder, _ = straight(case)
    world = layout(case)["world"]
    files = sorted(path.relative_to(step(folder, 5)).as_posix() for path in step(folder, 5).rglob("*.safetensors"))
    assert [name for name in files if "/" not in name] == ["strategy.safetensors", "task.safetensors"]
    held = tensors(step(folder, 5))
    own = [
        {name.split("/", 2)[2]: tensor for name, tensor in held.items() if name.startswith(f"rank/{rank}/")}
        for rank in range(world)
    ]
    name = "recurrent.weight_hh_l0"
    differ = [
        f"model.safetensors:{name}",
        f"optimizer.safetensors:{name}/center",
        f"optimizer.safetensors:{name}/scaled_dual",
    ]
    if case == "worker":
        differ.append(f"strategy.safetensors:dual/{name}")
    for thing in differ:
        values = [own[rank][thing] for rank in range(world)]
        together = [(0, 1), (2, 3)] if case == "machines" else []
        for one in range(world):
            for other in range(one + 1, world):
                assert torch.equal(values[one], values[other]) == ((one, other) in together), (thing, one, other)
    assert len({own[rank]["random.safetensors:torch"].numpy().tobytes() for rank in range(world)}) == world


@pytest.mark.parametrize("case", ["flat", "ddp"])
def test_equal_workers_write_their_weights_once(straight: Straight, case: str) -> None:
    folder, _ = straight(case)
    files = {path.relative_to(step(folder, 5)).as_posix() for path in step(folder, 5).rglob("*.safetensors")}
    assert {"model.safetensors", "optimizer.safetensors"} <= files
    assert not any(name.startswith("rank/") and ("model" in name or "optimizer" in name) for name in files)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case]["strategy"] != "gradient"])
def test_an_epochs_reset_makes_an_agreement(straight: Straight, case: str) -> None:
    """Batch 4 ends the first epoch; with every=7 and delay=2 an agreement that left before its last updates is late."""
    folder, _ = straight(case)
    held = tensors(step(folder, 4))
    own = [name for name in held if name.startswith("rank/0/") and "safetensors:recurrent.weight_hh_l0" in name]
    slow = [name for name in own if name.endswith(("/center", "/scaled_dual"))]
    weights = [name for name in own if "model.safetensors" in name and case != "kept"]
    assert len(slow) == 2
    for name in [*slow, *weights]:
        for rank in range(1, layout(case)["world"]):
            assert equal(held[name.replace("rank/0", f"rank/{rank}", 1)], held[name], case), name


@pytest.mark.parametrize("case", CASES)
def test_the_workers_end_agreed(straight: Straight, case: str) -> None:
    """The end makes an agreement: the workers' W are equal, but where they are kept; W̄ and u are too."""
    folder, outcomes = straight(case)
    manifest = json.loads((step(folder, BATCHES) / "manifest.json").read_text())
    assert manifest["world"] == layout(case)["world"]
    first, *others = outcomes
    for other in others:
        for name, tensor in first.weights.items():
            assert torch.equal(other.weights[name], tensor) == (case != "kept"), name
        for name, tensor in first.optimizer.items():
            if name.endswith(("/center", "/scaled_dual")):
                assert equal(other.optimizer[name], tensor, case), name


def equal(one: Tensor, other: Tensor, case: str) -> bool:
    """Bit for bit; with every=1 W̄ and u do not travel, each worker finds their means by itself, to rounding."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7) if case == "every 1" else torch.equal(one, other)
