"""What goes wrong on one worker: all hear of it, say it alike, and leave; in the pool's processes."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fptt_dist.config import Config, ConfigError, apply_overrides
from fptt_dist.parallel import LaunchEnvironment, LostWorkerError
from fptt_dist.parallel.comm import errors
from fptt_dist.training import run
from fptt_dist.training.non_finite import NonFiniteError
from fptt_dist.training.process.signals import Interrupted, StopFlag
from fptt_dist.training.setup import consistency, task_factory
from tests.parallel.fault_driver import Moment, _fail, place
from tests.parallel.pool import Pool
from tests.parallel.runs import open_trainer, tiny
from tests.training.helpers import content
from tests.training.toys import Overflowing

CONSENSUS: dict[str, Any] = {"strategy": "consensus", "sync_every": 3}
WORKER = {**CONSENSUS, "dual": "local"}
STRATEGIES: dict[str, tuple[dict[str, Any], int]] = {
    "gradient": ({"strategy": "data_parallel"}, 1),
    "ddp": ({"strategy": "data_parallel", "reduce": "ddp"}, 1),
    "late": ({**CONSENSUS, "sync_every": 7, "sync_delay": 2}, 1),
    "rare": ({**CONSENSUS, "sync_every": 1000, "control_interval": 5}, 1),
    "worker": (WORKER, 1),
    "machines": ({"strategy": "hierarchical", "sync_every": 3}, 2),
    "machines fsdp": ({"strategy": "hierarchical", "sync_every": 3, "intra_node": "fsdp"}, 2),
    "fsdp": ({"strategy": "fsdp"}, 1),
    "zero 1": ({"strategy": "deepspeed", "zero_stage": 1}, 1),
    "zero 2": ({"strategy": "deepspeed", "zero_stage": 2}, 1),
    "zero 3": ({"strategy": "deepspeed", "zero_stage": 3}, 1),
}


def strategies(quick: list[str], slow: list[str]) -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=pytest.mark.slow) for name in slow]
    return pytest.mark.parametrize("name", [*quick, *marked])


def program(environment: LaunchEnvironment, configs: list[Config], code: str = "") -> str:
    """`run.train`, each worker as configured, the last with `code` as its checksum; the message."""
    mine = configs[min(environment.rank, len(configs) - 1)]
    resolve, checksum = run.resolve_environment, consistency._code
    run.resolve_environment = lambda launcher="auto", environ=os.environ: replace(environment)
    if code and environment.rank == environment.world - 1:
        consistency._code = lambda: code
    try:
        run.train(mine)
    except ConfigError as error:
        return str(error)
    finally:
        run.resolve_environment, consistency._code = resolve, checksum
    return "trained"


def test_the_program_trains_where_all_are_alike(pool: Pool, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", {"train.max_batches": 2})
    assert pool.run(program, [config], world=2) == ["trained"] * 2
    assert (tmp_path / "run/result.json").is_file()


def test_another_configuration_is_refused_by_all(pool: Pool, tmp_path: Path) -> None:
    base = tiny(tmp_path / "run")
    other = apply_overrides(base, {"fptt.alpha": 0.25, "run.dir": str(tmp_path / "other")})
    said = pool.run(program, [base, base, other], world=3)
    assert (
        said
        == [
            "the workers do not run the same:\n"
            "  fptt.alpha: 0.5 on rank 0, 0.25 on rank 2\n"
            f"  run.dir: {tmp_path}/run on rank 0, {tmp_path}/other on rank 2"
        ]
        * 3
    )
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_one_has_not_is_named(pool: Pool, tmp_path: Path) -> None:
    base = tiny(tmp_path / "run", {"parallel": CONSENSUS})
    other = tiny(tmp_path / "run", {"parallel": {"strategy": "data_parallel"}})
    said = pool.run(program, [base, other])
    assert said[0] == said[1]
    assert "  parallel.sync_every: 3 on rank 0, not set on rank 1\n" in said[0]
    assert "  parallel.reduce: not set on rank 0, flat on rank 1\n" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_another_program_is_refused_by_all(pool: Pool, tmp_path: Path) -> None:
    base = tiny(tmp_path / "run")
    said = pool.run(program, [base], "f" * 64)
    checksum = consistency._code()[:12]
    assert (
        said
        == [f"the workers do not run the same:\n  code of fptt_dist: {checksum} on rank 0, ffffffffffff on rank 1"] * 2
    )
    assert list(tmp_path.iterdir()) == []


def left_alone(
    environment: LaunchEnvironment, config: Config, machines: int, moment: str, number: int
) -> tuple[str, list[int], float] | None:
    """Train; the last rank raises at the moment. What the others hear: the message, the silent, seconds until then."""
    grace, errors.GRACE = errors.GRACE, 1.0
    last = environment.rank == environment.world - 1
    fault = Moment(moment, number, _fail) if last else None
    trainer = open_trainer(place(environment, machines), config)
    began = time.monotonic()
    try:
        trainer.fit(StopFlag())
    except ZeroDivisionError:
        dist.destroy_process_group()  # as a process that ends, but torch may keep the connection: see `timeout`
        return None
    except LostWorkerError as error:
        return str(error), error.silent, time.monotonic() - began
    finally:
        errors.GRACE = grace
        if fault is not None:
            fault.over()
    raise AssertionError("the run ended")


@strategies(["gradient", "worker", "fsdp"], ["ddp", "late", "machines", "machines fsdp", "zero 2", "zero 3"])
def test_who_raises_leaves_nobody_behind(pool: Pool, tmp_path: Path, name: str) -> None:
    """At its third batch, where the others wait in the next collective."""
    parallel, machines = STRATEGIES[name]
    world = 2 * machines
    config = tiny(tmp_path / "run", {"parallel": {**parallel, "timeout_seconds": 2.0}})
    *others, raised = pool.run(left_alone, config, machines, "batch", 3, world=world, timeout=25.0)
    assert raised is None
    for rank, heard in enumerate(others):
        assert heard is not None
        message, silent, seconds = heard
        assert message.startswith(f"rank {rank} lost the other workers in the collective '")
        assert "start again with resume=auto" in message
        assert seconds < 10.0
        assert world - 1 in silent or world > 2, message
    assert any(heard is not None and heard[1] == [world - 1] for heard in others), others


@pytest.mark.parametrize(("moment", "collective"), [("sync", "sync"), ("save", "checkpoint written")])
def test_the_collective_and_the_silent_are_named(pool: Pool, tmp_path: Path, moment: str, collective: str) -> None:
    """In a save on one rank, or after its share of a sync is on its way."""
    config = tiny(tmp_path / "run", {"parallel": {**WORKER, "timeout_seconds": 2.0}, "checkpoint.every_batches": 2})
    one, other, raised = pool.run(left_alone, config, 1, moment, 2, world=3, timeout=25.0)
    assert raised is None
    assert one is not None
    assert other is not None
    for rank, (message, silent, _) in enumerate((one, other)):
        assert silent == [2]
        if moment == "save":
            assert f"rank {rank} lost the other workers in the collective '{collective}' after " in message
        assert "(no word from rank 2)" in message


def overflowed(environment: LaunchEnvironment, config: Config, machines: int) -> str:
    """Train on data of which the last rank's sixth batch holds infinite numbers: the message of NonFiniteError."""
    real = task_factory.build_task
    if environment.rank == environment.world - 1:
        task_factory.build_task = lambda config: Overflowing(6, 12, length=20, examples=32, validation=41, test=30)
    try:
        trainer = open_trainer(place(environment, machines), config)
        trainer.fit(StopFlag())
    except NonFiniteError as error:
        return str(error)
    finally:
        task_factory.build_task = real
    raise AssertionError("the run ended")


@strategies(["gradient", "late", "rare", "fsdp", "zero 2"], ["ddp", "worker", "machines fsdp", "zero 1", "zero 3"])
def test_what_is_not_finite_on_one_worker_stops_all(pool: Pool, tmp_path: Path, name: str) -> None:
    """Step 12 is in window 3 of 4 of batch 6. With sync_every=1000 the save of batch 8 is what tells the others."""
    parallel, machines = STRATEGIES[name]
    parallel = {key: value for key, value in parallel.items() if key != "control_interval"}
    world = 2 * machines
    keys = {"parallel": parallel, "checkpoint.every_batches": 2, "evaluate.every_batches": 100}
    said = pool.run(overflowed, tiny(tmp_path / "run", keys), machines, world=world)
    assert len(set(said)) == 1
    where = (
        f"the loss is not finite in window 3 of 4 of batch 6, epoch 1, on rank {world - 1}. The newest checkpoint is "
    )
    assert said[0].startswith(where)
    assert f"the inputs have inf at step 13 of 20, in window 3 of 4, sequence 1 of rank {world - 1}'s share" in said[0]
    for folder in (tmp_path / "run/checkpoints").glob("step-*"):
        assert (folder / "manifest.json").is_file(), "what cannot be gone on from is no checkpoint"
        for name, value in content(folder).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                assert torch.isfinite(value).all(), (folder, name)
    assert (tmp_path / "run/checkpoints/step-00000004").is_dir()
    assert not (tmp_path / "run/checkpoints/step-00000006").exists()
    assert not (tmp_path / "run/result.json").exists()
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["batch"] <= 8


def asked(environment: LaunchEnvironment, config: Config, machines: int) -> tuple[int, int, str]:
    """Train; the last rank alone is asked to stop in its third batch. The exit code, the batch, the message."""
    flag = StopFlag()

    def ask() -> None:
        flag.number = 2

    moment = Moment("batch", 3, ask) if environment.rank == environment.world - 1 else None
    trainer = open_trainer(place(environment, machines), config)
    try:
        trainer.fit(flag)
    except Interrupted as error:
        return error.exit_code, trainer.state.position.batch, str(error)
    finally:
        if moment is not None:
            moment.over()
    raise AssertionError("the run ended")


@strategies(["gradient", "late", "rare"], ["ddp", "worker", "machines", "machines fsdp", "zero 2"])
def test_one_that_is_asked_to_stop_stops_all(pool: Pool, tmp_path: Path, name: str) -> None:
    """All save the same batch and leave with their own exit code; DDP asks only every 100 updates, or at a save."""
    parallel, machines = STRATEGIES[name]
    keys = {"parallel": parallel, "checkpoint.every_batches": 7}
    answers = pool.run(asked, tiny(tmp_path / "run", keys), machines, world=2 * machines)
    assert len({answer[1:] for answer in answers}) == 1
    batch = answers[0][1]
    assert 4 <= batch <= (8 if parallel.get("reduce") == "ddp" else 6)
    assert [answer[0] for answer in answers] == [143] * (2 * machines - 1) + [130]
    assert answers[0][2].startswith(f"stopped by a signal after batch {batch} of 10, saved in ")
    assert (tmp_path / f"run/checkpoints/step-{batch:08d}/manifest.json").is_file()
