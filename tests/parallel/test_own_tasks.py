"""A task from a user's file on several workers: the same bits after an interruption, and refused where data differ."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt_dist.config import Config, ConfigError
from fptt_dist.parallel import LaunchEnvironment, communicator
from fptt_dist.training.saved_run import evaluate_run
from fptt_dist.training.setup.consistency import check_consistency
from tests.own_tasks import write_waves
from tests.parallel.fault_driver import broken, whole
from tests.parallel.pool import Pool
from tests.parallel.runs import Outcome, refusal
from tests.training.helpers import assert_same_checkpoint, result
from tests.training.test_own_tasks import own

STRATEGIES: dict[str, dict[str, Any]] = {
    "consensus": {"strategy": "consensus", "sync_every": 4},
    "data_parallel": {"strategy": "data_parallel"},
}


def elsewhere(environment: LaunchEnvironment, config: Config, places: list[str]) -> str:
    """The message that this worker ends with, whose task reads its own one of `places`."""
    task = config.task.model_copy(update={"options": {"place": places[environment.rank]}})
    return refusal(environment, config.model_copy(update={"task": task}))


def compared(environment: LaunchEnvironment, config: Config, folders: list[str]) -> str:
    """The message of the comparison that this worker takes part in, in its own one of `folders`."""
    with contextlib.chdir(folders[environment.rank]):
        try:
            check_consistency(communicator(environment, torch.device("cpu")), config)
        except ConfigError as error:
            return str(error)
    return "the same"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_interrupted_is_uninterrupted(strategy: str, pool: Pool, tmp_path: Path) -> None:
    file = write_waves(tmp_path)

    def keys(name: str, **more: Any) -> Config:
        common = {"parallel": STRATEGIES[strategy], "checkpoint.every_batches": 1, "checkpoint.keep_last": 20}
        return own(file, tmp_path / name, {**common, **more}, batches=8)

    straight: list[Outcome] = pool.run(whole, keys("straight"), world=2)
    assert straight[0].values == straight[1].values
    pool.run(broken, keys("parts"), 5, world=2)
    again: list[Outcome] = pool.run(whole, keys("parts", resume="auto"), world=2)
    assert [each.values for each in again] == [each.values for each in straight]
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "parts")
    assert evaluate_run(tmp_path / "parts")["test"] == pytest.approx(result(tmp_path / "straight")["value"])


def test_other_data_on_another_worker_are_refused(pool: Pool, tmp_path: Path) -> None:
    file = write_waves(tmp_path)
    text = file.read_text().replace("seed: int = 0)", 'seed: int = 0, place: str = "")')
    text = text.replace("default_rng(0)", "default_rng(np.fromfile(place, np.uint8))").replace("int = 40", "int = 12")
    file.write_text(text.replace("1000, seed", "np.fromfile(place, np.uint8).size, seed"))
    for name, content in (("one", "a" * 900), ("same", "a" * 900), ("other", "b" * 900), ("fewer", "a" * 800)):
        (tmp_path / name).write_text(content)

    def said(*names: str) -> list[str]:
        config = own(file, tmp_path / "-".join(names), {"task.options": {}})
        return pool.run(elsewhere, config, [str(tmp_path / name) for name in names], world=2)

    assert said("one", "same") == ["accepted"] * 2
    for message in said("one", "other"):
        assert message.startswith(
            "rank 1 finds other data than rank 0, as many sequences of other values: give all the"
        )
    assert said("one", "fewer") == [
        "rank 0 finds 900 training sequences, rank 1 800: give all the same data.root",
        "rank 1 finds 800 training sequences, rank 0 900: give all the same data.root",
    ]


def test_the_file_is_compared(pool: Pool, tmp_path: Path) -> None:
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        files.append(write_waves(tmp_path / name))
    files[1].write_text(files[1].read_text() + "\n")
    config = own("waves.py", tmp_path / "run")
    one, other = (hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files)
    message = f"the workers do not run the same:\n  code of task.name: {one} on rank 0, {other} on rank 1"
    assert pool.run(compared, config, [str(file.parent) for file in files], world=2) == [message] * 2
