"""A sweep before anything starts: its runs, what is refused, and the folder they share."""

import itertools
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from fptt_dist.config import ConfigError, PixelsTask, apply_overrides, changes, load, parse_overrides
from fptt_dist.config.loading.loader import PACKAGED, read_mapping
from fptt_dist.config.schema.section import explicit
from fptt_dist.config.schema.sweep import packaged_sweeps
from fptt_dist.launchers.ray.tune import sweep
from fptt_dist.launchers.sweeps.directory import check_folder, create_folder, note_trial, read_note, write_if_over
from fptt_dist.launchers.sweeps.plan import SweepPlan, config_of, make_plan
from fptt_dist.training.lock.directory_lock import hold
from fptt_dist.training.lock.holder import Holder
from tests.reporting.sweeps import make_sweep, run
from tests.tasks.test_pixels import write_images

GRID = "{grid: [0.1, 1.0]}"  # 1.0 is what add_task says


pytestmark = pytest.mark.usefixtures("here")


def plan_of(
    space: str, *words: str, more: str = "", config: str = "add_task", processes: int | None = None
) -> SweepPlan:
    """The plan of a sweep of add_task; `space` is a line for each key."""
    file = Path("mine.yaml")
    lines = "".join(f"  {line.strip()}\n" for line in space.strip().splitlines())
    file.write_text(f"config: {config}\nspace:\n{lines}{more}")
    before = set(Path().rglob("*"))
    try:
        return make_plan(file, list(words), processes=processes)
    finally:
        assert set(Path().rglob("*")) == before


def refused(space: str, *words: str, more: str = "", processes: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(space, *words, more=more, processes=processes)
    return str(caught.value)


def runs(plan: SweepPlan) -> list[tuple[dict[str, Any], bool]]:
    assert [trial.index for trial in plan.trials] == list(range(len(plan.trials)))
    assert [trial.name for trial in plan.trials] == [f"{index:03d}" for index in range(len(plan.trials))]
    assert plan.count == len(plan.trials) + getattr(plan.sweep.search, "trials", 0) * (
        plan.sweep.search.name == "optuna"
    )
    return [(trial.overrides, trial.default) for trial in plan.trials]


# The runs.


def test_the_default_comes_first_and_not_twice() -> None:
    plan = plan_of(f"fptt.alpha: {GRID}\nfptt.windows: {{grid: [5, 10]}}")
    assert runs(plan) == [
        ({}, True),
        ({"fptt.alpha": 0.1, "fptt.windows": 5}, False),
        ({"fptt.alpha": 0.1, "fptt.windows": 10}, False),
        ({"fptt.alpha": 1.0, "fptt.windows": 5}, False),
    ]
    assert changes(plan.base, load("add_task")) == {}
    assert (plan.batches, plan.metric, plan.higher_is_better) == (1400, "mse", False)


def test_the_default_runs_once_for_each_seed() -> None:
    plan = plan_of(f"seed: {{grid: [4, 5, 4]}}\nfptt.alpha: {GRID}")
    assert runs(plan) == [
        ({"seed": 4}, True),
        ({"seed": 5}, True),
        ({"seed": 4, "fptt.alpha": 0.1}, False),
        ({"seed": 5, "fptt.alpha": 0.1}, False),
    ]


def test_seeds_alone() -> None:
    assert runs(plan_of("seed: {grid: [0, 1, 2]}")) == [({"seed": seed}, True) for seed in (0, 1, 2)]


def test_a_seed_that_only_some_points_have() -> None:
    plan = plan_of(f"fptt.alpha: {GRID}\nseed: {{grid: [7, 8], when: {{fptt.alpha: 0.1}}}}")
    assert runs(plan)[:4] == [
        ({"seed": 7}, True),
        ({"seed": 8}, True),
        ({"fptt.alpha": 0.1, "seed": 7}, False),
        ({"fptt.alpha": 0.1, "seed": 8}, False),
    ]


def test_no_run_is_there_twice() -> None:
    for space, more, expected in (
        ("optimizer.lr: {grid: [0.5, 0.5, 0.25, 3e-3]}", "", [0.5, 0.25]),
        ("optimizer.lr: {choice: [0.5, 0.25]}", "search: {name: random, trials: 20}\n", [0.5, 0.25]),
        ("optimizer.lr: {choice: [0.5]}\ntrain.max_norm: {grid: [1, 1.0]}", "search: {name: random}\n", [0.5]),
    ):
        (default, *others) = runs(plan_of(space, more=more))
        assert default == ({}, True)
        assert sorted((overrides["optimizer.lr"] for overrides, _ in others), reverse=True) == expected


def test_a_point_that_writes_the_default_in_other_words_is_the_default() -> None:
    plan = plan_of(
        "schedule: {grid: [{name: constant}, {name: cosine}]}\ntrain.max_norm: {grid: [1, null]}\n"
        "optimizer.name: {grid: [adam, rmsprop]}"
    )
    assert len(plan.trials) == 8
    assert (
        sum(not changes(plan.run(trial), plan.run(plan.trials[0])).keys() - {"run.dir"} for trial in plan.trials) == 1
    )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1, 2]), min_size=1, max_size=4),
    st.lists(st.sampled_from([1, 5, 10, None]), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=0, max_size=3, unique=True),
)
def test_the_runs_are_all_different_and_cover_the_product(
    alphas: list[float], windows: list[int | None], seeds: list[int]
) -> None:
    space = f"fptt.alpha: {{grid: {alphas}}}\nfptt.windows: {{grid: {json.dumps(windows)}}}\n"
    space += f"seed: {{grid: {seeds}}}" if seeds else ""
    if max(len(alphas), len(windows), len(seeds)) < 2:
        assert refused(space).startswith("space: nothing varies")
        return
    plan = plan_of(space)
    configs = [apply_overrides(plan.base, trial.overrides) for trial in plan.trials]
    found = [(config.fptt.alpha, config.fptt.windows, config.seed) for config in configs]
    assert len(set(found)) == len(found)
    # A list of one value is the default's too.
    default = (1.0 if len(alphas) > 1 else alphas[0], 10 if len(windows) > 1 else windows[0])
    known = seeds if len(seeds) > 1 else seeds or [0]
    assert found[: len(known)] == [(*default, seed) for seed in known]
    wanted = {(float(alpha), window, seed) for alpha in alphas for window in windows for seed in known}
    assert set(found) == wanted | {(*default, seed) for seed in known}
    assert [trial.default for trial in plan.trials] == [index < len(known) for index in range(len(found))]


def test_fixed_keys_are_every_run_s() -> None:
    plan = plan_of(f"train.max_batches: 7\nfptt.metric: euclidean\nfptt.alpha: {GRID}", "model.hidden=3")
    assert (plan.base.train.max_batches, plan.base.fptt.metric, plan.batches) == (7, "euclidean", 7)
    assert plan.base.model.model_dump()["hidden"] == 3
    assert runs(plan) == [({}, True), ({"fptt.alpha": 0.1}, False)]
    assert plan_of(f"train.max_batches: 7\nfptt.alpha: {GRID}", "train.max_batches=9").base.train.max_batches == 9


def test_draws_are_those_of_the_search_s_seed() -> None:
    space, more = "fptt.alpha: {loguniform: [1e-3, 1]}\nfptt.windows: {grid: [4, 8]}", "search: {name: random}\n"
    plan = plan_of(space, "sweep.search.trials=3", more=more)
    assert len(plan.trials) == 7
    assert runs(plan) == runs(plan_of(space, "sweep.search.trials=3", more=more))
    other = plan_of(space, "sweep.search.trials=3", "sweep.search.seed=1", more=more)
    assert runs(plan)[1:] != runs(other)[1:]
    # The run's own seed has no part in it.
    assert runs(plan) == runs(plan_of(space, "sweep.search.trials=3", "seed=5", more=more))


def test_of_a_search_that_chooses_the_default_alone_is_known() -> None:
    plan = plan_of("fptt.alpha: {uniform: [0, 1]}", more="search: {name: optuna, trials: 6}\n")
    assert runs(plan) == [({}, True)]
    assert plan.count == 7


def test_words_for_the_sweep_and_words_for_its_runs(here: Path) -> None:
    plan = plan_of(
        f"fptt.alpha: {GRID}", "sweep.workers=2", "sweep.scheduler.name=asha", "train.max_epochs=2", "seed=3"
    )
    assert (plan.sweep.workers, plan.sweep.scheduler.name) == (2, "asha")
    assert (plan.base.seed, plan.base.train.max_epochs, plan.batches) == (3, 2, 400)
    assert plan.folder == here / "runs" / "mine"
    assert plan_of(f"fptt.alpha: {GRID}", "sweep.workers=2", processes=6).sweep.workers == 6


def test_the_folder(here: Path) -> None:
    for word, folder in {"run.dir=a b": "a b", "run.dir=/x/y": "/x/y", "run.dir=null": "runs/mine"}.items():
        plan = plan_of(f"fptt.alpha: {GRID}", word, "resume=auto", "data.root=here")
        assert plan.folder == here / folder
        config = plan.run(plan.trials[1])
        assert (config.run.dir, config.data.root) == (str(here / folder / "001"), str(here / "here"))
        assert (config.fptt.alpha, config.resume) == (0.1, "never")
        assert config == config_of(plan.base, plan.trials[1].overrides, plan.folder / "001")


def test_what_one_run_drops_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan_of("optimizer.name: {grid: [adam, adamw]}\nseed: {grid: [0, 1, 2]}")
    assert caplog.messages == ["optimizer.name=adamw replaces adam: dropped optimizer.lr=0.003"]
    with caplog.at_level(logging.WARNING):
        logging.getLogger("fptt_dist").warning(caplog.messages[0])
    assert len(caplog.messages) == 2


# What is refused, before anything starts.


def test_a_key_that_is_the_same_for_all_runs() -> None:
    for key in ("run.dir", "resume", "task.name", "data.root", "run", "task", "data"):
        message = f"mine.yaml:4: {key} is the same for all runs: leave it out here"
        assert refused(f"seed: {{grid: [1, 2]}}\n{key}: {{grid: [a, b]}}") == message


def test_a_key_that_varies_and_is_typed_too() -> None:
    message = "mine.yaml:3: fptt.alpha varies: type no fptt.alpha=…, or leave it out here"
    assert refused(f"fptt.alpha: {GRID}", "fptt.alpha=0.5") == message
    assert refused(f"fptt.alpha: {GRID}", "fptt.alpha=1.0") == message


def test_more_windows_than_steps_names_the_run() -> None:
    assert refused(f"fptt.alpha: {GRID}\nfptt.windows: {{grid: [10, 50]}}", "task.length=40") == (
        "fptt.windows=50 is more than the steps of a sequence, task.length=40: type fptt.windows=40 or less, or "
        "fptt.windows=null for round(sqrt(length)) windows (override fptt.windows=50)\n  in the run fptt.alpha=0.1 "
        "fptt.windows=50"
    )


def test_a_default_that_is_no_run() -> None:
    assert refused("train.max_batches: {grid: [1, 2]}", "train.batch_size=1", "sweep.workers=2") == (
        "train.batch_size=1 is the global batch, fewer sequences than the 2 workers: type train.batch_size=2\n"
        "  in the run of the default"
    )
    assert "the 3 workers" in refused("train.batch_size: {grid: [2, 64]}", processes=3)


def test_many_mistakes_are_cut_short() -> None:
    for count, more in ((5, ""), (6, "and 1 more"), (9, "and 4 more")):
        lines = refused(f"optimizer.lr: {{grid: {[-index - 1 for index in range(count)]}}}").splitlines()
        assert lines[:4] == [
            "optimizer.lr: -1 is not allowed; allowed: float > 0 (override optimizer.lr=-1)",
            "  in the run optimizer.lr=-1",
            "optimizer.lr: -2 is not allowed; allowed: float > 0 (override optimizer.lr=-2)",
            "  in the run optimizer.lr=-2",
        ]
        assert lines[10:] == [more] * bool(more)


def test_one_mistake_of_many_runs_is_told_once() -> None:
    space = "optimizer.lr: {grid: [0.1, -1]}\nseed: {grid: [0, 1, 2]}\nmodel.layers: {grid: [1, 2]}"
    assert refused(space).splitlines() == [
        "optimizer.lr: -1 is not allowed; allowed: float > 0 (override optimizer.lr=-1)",
        "  in the run optimizer.lr=-1 seed=0 model.layers=1",
    ]


def test_the_ends_of_optuna_s_ranges_are_tried() -> None:
    more = "search: {name: optuna}\n"
    said = refused("fptt.windows: {integers: [1, 300]}\noptimizer.lr: {uniform: [0, 1]}", more=more)
    assert "fptt.windows=300 is more than the steps of a sequence, task.length=200" in said
    assert "optimizer.lr: 0 is not allowed; allowed: float > 0" in said
    assert "in the run fptt.windows=1 optimizer.lr=0" in said
    assert len(said.splitlines()) == 4 + 2 * (said.count("in the run") - 2)
    plan_of("fptt.windows: {integers: [1, 200]}\noptimizer.lr: {loguniform: [1e-3, 1]}", more=more)


MISTAKES = [
    (
        "fptt.alpha: 1",
        "",
        "space: nothing varies: write a key with {grid: [one, another]}",
    ),
    (
        "seed: {grid: [1, 2]}\nfptt.alpha: {uniform: [0, 1]}",
        "",
        "space: fptt.alpha is drawn, and search.name=grid goes through lists: write {grid: […]}, or type "
        "sweep.search.name=random",
    ),
    (
        f"fptt.alpha: {GRID}",
        "search: {name: random}\n",
        "space: nothing is drawn: write fptt.alpha with {choice: […]}, or type sweep.search.name=grid",
    ),
    (
        f"optimizer.lr: {{uniform: [0.1, 1]}}\nfptt.alpha: {GRID}",
        "search: {name: optuna}\n",
        "space: Optuna chooses each value itself: write fptt.alpha with {choice: […]}",
    ),
    ("optimzer.lr: {grid: [1, 2]}", "", "optimzer: unknown key; did you mean optimizer? (override optimzer.lr=1)"),
    ("optimzer.lr: 1\nseed: {grid: [1, 2]}", "", "optimzer: unknown key; did you mean optimizer? (override"),
    (
        f"fptt.alpha: [0, 1]\nfptt.windows: {GRID}",
        "",
        "fptt.alpha: [0, 1] is not allowed; allowed: float >= 0 (override fptt.alpha=[0, 1]); to train with each of "
        "them write fptt.alpha: {grid: [0, 1]}",
    ),
    ("fptt.alpha: {grid: []}", "", "mine.yaml:3: fptt.alpha: grid needs a list of values, such as {grid: [0.1,"),
    (f"fptt.alpha: {GRID}", "workers: 0\n", "workers: 0 is not allowed; allowed: int >= 1 (mine.yaml:4)"),
    (
        "optimizer: {grid: [{name: sgd}, {name: adam}]}\noptimizer.name: {grid: [adam, sgd]}",
        "",
        "optimizer.name is given twice: override optimizer={name: sgd} and override optimizer.name=adam",
    ),
]


def test_a_mistake() -> None:
    said = [(refused(space, more=more), message) for space, more, message in MISTAKES]
    assert [each for each in said if not each[0].startswith(each[1])] == []


def test_no_such_file() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(Path("gone.yaml"), [])
    assert str(caught.value) == f"gone.yaml: no such file; packaged: {', '.join(packaged_sweeps())}"
    with pytest.raises(ConfigError, match=r"nope: no such file; packaged: add_task\.yaml"):
        plan_of(f"fptt.alpha: {GRID}", config="nope")


def test_the_packaged_sweeps(here: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        write_images(here / "data" / "mnist", part, images, np.arange(70, dtype=np.uint8) % 10)
    for name in packaged_sweeps():
        words = [f"data.root={here / 'data'}"]
        task = load(make_config(name)).task
        if isinstance(task, PixelsTask):
            words += ["task.validation=10"] + (["task.examples=60"] if task.examples else [])
        plan = make_plan(PACKAGED / name, words)
        assert plan.folder == here / "runs" / Path(name).stem
        assert plan.trials[0].default
        assert plan.count > 2
        assert plan.batches >= 1
        assert len({plan.run(trial).model_dump_json() for trial in plan.trials}) == len(plan.trials), name
        create_folder(plan)
        assert check_folder(plan, resume=True)


def make_config(name: str) -> Path:
    values = YAML(typ="safe", pure=True).load((PACKAGED / name).read_text())
    return (PACKAGED / name).parent / values["config"]


# The folder.


@pytest.fixture
def plan() -> SweepPlan:
    return plan_of("fptt.alpha: {grid: [0.1, 1]}\nfptt.windows: 4", "run.dir=there", "optimizer.lr=1e-5")


def test_a_fresh_folder_and_an_empty_one(plan: SweepPlan) -> None:
    for resume in (False, True):
        assert not check_folder(plan, resume=resume)
    assert not plan.folder.exists()
    plan.folder.mkdir()
    assert not check_folder(plan, resume=False)
    create_folder(plan)
    assert [path.name for path in plan.folder.iterdir()] == ["sweep.yaml"]


def test_an_occupied_folder(plan: SweepPlan, here: Path) -> None:
    (here / "full" / "000").mkdir(parents=True)
    (here / "file").touch()
    (here / "link").symlink_to("file")
    for name, resume in itertools.product(("full", "file", "link"), (False, True)):
        with pytest.raises(ConfigError) as caught:
            check_folder(replace(plan, folder=here / name), resume=resume)
        message = f"run.dir={here / name} is not empty and holds no sweep: type run.dir=… for another folder"
        assert str(caught.value) == message


def test_a_folder_that_cannot_be_created(plan: SweepPlan, here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(ConfigError) as caught:
        create_folder(replace(plan, folder=here / "file" / "there"))
    assert str(caught.value).startswith(f"run.dir={here / 'file' / 'there'} cannot be created: ")


def test_the_same_sweep_again(plan: SweepPlan) -> None:
    create_folder(plan)
    text = (plan.folder / "sweep.yaml").read_text()
    assert check_folder(plan, resume=True)
    create_folder(plan)
    assert (plan.folder / "sweep.yaml").read_text() == text
    with pytest.raises(ConfigError) as caught:
        check_folder(plan, resume=False)
    assert str(caught.value) == (
        f"run.dir={plan.folder} holds a sweep already: type --resume to resume it, or run.dir=… for another folder"
    )
    with pytest.raises(ConfigError, match="type resume=auto to resume it"):
        check_folder(plan, resume=False, option="resume=auto")


def test_another_sweep_is_told_by_all_that_differs(plan: SweepPlan) -> None:
    create_folder(plan)
    now = plan_of(
        "fptt.alpha: {grid: [0.1, 2]}\nfptt.windows: 5\nseed: {grid: [1, 2]}", "run.dir=there", "sweep.max_failures=0"
    )
    with pytest.raises(ConfigError) as caught:
        check_folder(now, resume=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"--resume: run.dir={plan.folder} holds another sweep:"
    assert set(lines[1:-1]) == {
        "  space.fptt.alpha.grid: [0.1, 1] there, [0.1, 2] now",
        "  space.fptt.windows: 4 there, 5 now",
        "  space.seed: null there, {grid: [1, 2]} now",
        "  max_failures: 2 there, 0 now",
        "  varying: [fptt.alpha] there, [fptt.alpha, seed] now",
        "  config.fptt.windows: 4 there, 5 now",
        "  config.optimizer.lr: 1e-05 there, 0.003 now",
    }
    assert lines[-1] == "give the old values, or run.dir=… for a new one"


def test_what_was_asked_for_can_be_read_again() -> None:
    plan = plan_of(
        "schedule: {grid: [{name: cosine, warmup_batches: 3}, {name: constant}]}\n"
        "train.max_norm: {grid: [null, 1e-7]}\n"
        "optimizer.betas: [0.8, 0.95]\nmodel.layer: lstm\nseed: {grid: [0, 9007199254740993]}",
        "optimizer.lr=1e-12",
        "data.root='1e5/no: ü'",
        "run.dir=there",
    )
    create_folder(plan)
    read = YAML(typ="safe", pure=True).load((plan.folder / "sweep.yaml").read_text())
    asked = plan.sweep.model_dump(mode="json")
    assert {key: read[key] for key in asked if key != "config"} == {
        key: value for key, value in asked.items() if key != "config"
    }
    assert read["config"] == json.loads(json.dumps(explicit(plan.base)))
    assert read["config"]["data"] == {"root": "1e5/no: ü"}
    assert read["config"]["optimizer"] == {"name": "adam", "lr": 1e-12, "betas": [0.8, 0.95]}
    assert (read["metric"], read["higher_is_better"], read["varying"]) == (
        "mse",
        False,
        ["schedule", "train.max_norm", "seed"],
    )
    assert check_folder(plan, resume=True)


def test_text_that_looks_like_something_else_stays_text(plan: SweepPlan, here: Path) -> None:
    for root in ("1e3", "no", "0o7", "0x1f", "1_000", "~", "2024-01-01", "12:30:45", "a\nb", " a", "#", "é ü"):
        base = apply_overrides(plan.base, parse_overrides([f"data.root={json.dumps(root)}"]))
        own = replace(plan, base=base, folder=here / "there" / root.encode().hex())
        create_folder(own)
        file = own.folder / "sweep.yaml"
        read = read_mapping(file).values
        assert read == YAML(typ="safe", pure=True).load(file.read_text())
        assert read["config"]["data"] == {"root": root}
        assert check_folder(own, resume=True)


# The results of an array, which the task that finishes last writes.


def results(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.isdecimal()} - {"sweep.yaml"}


def test_the_last_run_to_finish_writes_the_results(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_if_over(here)
    assert results(here) == set()
    folder = make_sweep(here / "alpha", ["fptt.alpha"])
    run(folder, 0, values=(0.5, 0.4), default=True)
    other = run(folder, 1, {"fptt.alpha": 0.1}, values=(0.5, 0.3), finished=False)
    write_if_over(folder)
    assert results(folder) == set()
    shutil.copy(folder / "000" / "result.json", other)
    with hold(folder, "another task"):  # which writes at this moment
        write_if_over(folder)
        assert results(folder) == {".lock"}
    killed = replace(Holder.here(kernel=True), pid=2**22 + 1)  # a task that was killed while it wrote
    (folder / ".lock").write_bytes(killed.text())
    write_if_over(folder)
    assert results(folder) == {"sweep.json", "best.yaml", "figures", "tensorboard"}
    write_if_over(folder)
    assert ".lock" not in results(folder)
    assert caplog.messages == []


def test_results_that_cannot_be_written_fail_no_run(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_sweep(here / "alpha", ["fptt.alpha"])
    run(folder, 0, values=(0.5, 0.4), default=True)
    (folder / "sweep.json").mkdir()
    write_if_over(folder)
    (folder / "000" / "trial.json").write_text("{")
    write_if_over(folder)
    failed = [
        said for said in caplog.messages if said.startswith(f"{folder}: the sweep's results could not be written")
    ]
    assert len(failed) == 2
    assert not (folder / ".lock").exists()


def test_a_sweep_in_use_is_refused_before_anything_starts(here: Path) -> None:
    plan = plan_of(f"fptt.alpha: {GRID}")
    with hold(plan.folder, "another sweep"):
        assert not check_folder(plan, resume=False)  # of a start that was killed early
        for resume in (False, True):
            with pytest.raises(ConfigError, match=rf"^run.dir={plan.folder} is in use by pid {os.getpid()} on "):
                sweep(plan, resume=resume)
        assert [path.name for path in plan.folder.iterdir()] == [".lock"]


def test_a_note_is_read_as_it_was_written(here: Path) -> None:
    folder = here / "deep" / "003"
    assert read_note(folder) == {}
    note = {"index": 3, "overrides": {"schedule": {"name": "cosine"}, "train.max_norm": None}, "default": False}
    note_trial(folder, note)
    assert read_note(folder) == note
    assert [path.name for path in folder.iterdir()] == ["trial.json"]
