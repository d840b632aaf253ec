"""`logging.profile`: a trace of the chosen batches, which changes nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fptt_dist import fit
from fptt_dist.config import ConfigError
from tests.parallel.pool import Pool
from tests.parallel.runs import train as train_on_workers
from tests.training.helpers import assert_same_run, resumed, tiny, train_until

DROPOUT: dict[str, Any] = {"model.layers": 2, "model.dropout": 0.5}


def ranges(run: Path) -> dict[str, Counter[str]]:
    """Return the number of each of this package's ranges, by trace."""
    found: dict[str, Counter[str]] = {}
    for path in sorted((run / "profile").iterdir()):
        events = json.loads(path.read_text())["traceEvents"]
        names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        found[path.name] = Counter(name.removeprefix("fptt_dist::") for name in names if "fptt_dist::" in name)
        assert any(event["name"] == "aten::addmm" for event in events)
    return found


def test_a_trace_of_the_batches_changes_nothing_and_continues_with_a_resumed_run(tmp_path: Path) -> None:
    fit(tiny(tmp_path / "plain", DROPOUT))
    config = tiny(tmp_path / "run", {**DROPOUT, "logging.profile": [3, 7]})
    train_until(config, 4)
    fit(resumed(config))
    assert_same_run(tmp_path / "plain", tmp_path / "run")
    each = {"batch": 1, "windows::1": 1, "windows::2": 1, "windows::3": 1, "update": 3}
    assert ranges(tmp_path / "run") == {
        "rank-0-batches-3-4.json": {name: 2 * number for name, number in each.items()},
        "rank-0-batches-5-7.json": {name: 3 * number for name, number in each.items()},
    }


def test_each_worker_writes_its_own_with_the_collectives(pool: Pool, tmp_path: Path) -> None:
    keys = {"parallel.strategy": "data_parallel", "logging.profile": [2, 9]}
    pool.run(train_on_workers, tiny(tmp_path / "run", keys, batches=3))
    found = ranges(tmp_path / "run")
    assert list(found) == ["rank-0-batches-2-3.json", "rank-1-batches-2-3.json"]
    assert all(names["all_reduce::gradients"] == names["update"] == 6 for names in found.values())


def test_a_range_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logging.profile=\[7, 3\]: the first batch comes after the last: type log"):
        tiny(tmp_path / "run", {"logging.profile": [7, 3]})
    with pytest.raises(ConfigError, match=r"logging.profile=\[11, 12\]: the run has 10 batches: type a first one"):
        fit(tiny(tmp_path / "run", {"logging.profile": [11, 12]}))
    assert not (tmp_path / "run").exists()
