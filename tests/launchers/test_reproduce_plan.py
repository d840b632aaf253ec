"""The paper's tables: which runs they ask for, what is refused, what is kept, and what a broken run leaves."""

import json
import os
import random
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.cli import main
from fptt_dist.config import ConfigError, load
from fptt_dist.launchers.paper.reproduce import TargetPlan, make_plan, reproduce
from fptt_dist.launchers.paper.rows import FOLDER, Budget, Shortened, Tables, Target, TargetGrid, TargetRow, load_tables
from fptt_dist.tasks import DataError
from fptt_dist.training.lock.directory_lock import hold
from fptt_dist.training.run import train
from tests.program import Program
from tests.training.helpers import assert_same_run, records, result

SMALL = {
    "task.length": 12,
    "task.examples": 20,
    "task.validation": 16,
    "task.test": 16,
    "model.hidden": 4,
    "train.batch_size": 4,
    "train.max_batches": 4,
    "evaluate.every_batches": 2,
    "logging.tensorboard": False,
    "device": "cpu",
}


pytestmark = pytest.mark.usefixtures("here")


def tables(*rows: TargetRow, picture: Any = None, varies: tuple[str, ...] = ()) -> Tables:
    """One target, "mine", of tiny adding tasks."""
    target = Target(title="Mine", unit="error", picture=picture, varies=varies, rows=rows)
    short = Shortened(families=("adding200", "adding500"), smoke=SMALL, short={**SMALL, "train.max_batches": 6})
    return Tables(targets={"mine": target}, budgets=(short,))


def row(config: str = "adding200_fptt", **more: Any) -> TargetRow:
    return TargetRow(config=config, label=config, **more)


PAPER = load_tables()
TWO = tables(row("adding200_bptt"), row("adding200_fptt"))


def of_the_paper(name: str, words: list[str], **options: Any) -> TargetPlan:
    return make_plan(name, words, tables=PAPER, **options)


def plan_of(*words: str, of: Tables = TWO, **options: Any) -> TargetPlan:
    return make_plan("mine", list(words), tables=of, **{"budget": "smoke", **options})


def refused(*words: str, name: str = "figure2", **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        of_the_paper(name, list(words), **options)
    return str(caught.value)


def run(plan: TargetPlan, index: int = 0) -> Path:
    return plan.runs[index].folder.path


def cells(text: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines[2:]}


# Which runs.


def test_the_runs_of_a_target() -> None:
    plan = of_the_paper("figure2", [], seeds=2)
    names = [f"adding200_{name}" for name in ("bptt", "tbptt_accumulated", "bptt_aux", "tbptt", "fptt")]
    names += [f"adding200_fptt-windows{k}" for k in (1, 3, 5, 10, 100, 200)]
    assert [str(run.folder.path) for run in plan.runs] == [
        f"runs/paper/short/{name}-seed{seed}" for name in names for seed in (0, 1)
    ]
    assert [run.config.seed for run in plan.runs] == [0, 1] * 11
    assert {run.config.resume for run in plan.runs} == {"auto"}
    assert plan.wanted == names
    assert str(plan.table_path) == "runs/paper/short/figure2.md"
    assert str(plan.picture_path) == "runs/paper/short/figures/figure2.png"


def test_the_seeds_of_a_budget() -> None:
    seeds: dict[Budget, int] = {"smoke": 1, "short": 3, "full": 3}
    for budget, count in seeds.items():
        plan = of_the_paper("table4", ["run.dir=a b"], budget=budget)
        assert (plan.seeds, len(plan.runs)) == (count, 6 * count)
        assert run(plan) == Path(f"a b/{budget}/ptb300_bptt-seed0")
        assert plan.command == f"fptt-dist reproduce table4 --budget {budget} --seeds {count} 'run.dir=a b'"
    assert len(of_the_paper("table4", [], seeds=5).runs) == 30


def test_targets_share_their_runs() -> None:
    one, other = of_the_paper("table2", []), of_the_paper("table3", [])
    shared = {str(run.folder.path): run.config for run in one.runs}
    assert {str(run.folder.path): run.config for run in other.runs}.items() <= shared.items()


def test_words_hold_for_every_row_and_win_over_the_budget() -> None:
    plan = of_the_paper("figure1", ["train.max_batches=7", "optimizer={lr: 0.5}"], budget="smoke")
    assert {
        (run.config.train.max_batches, run.config.optimizer.lr, run.config.evaluate.every_batches) for run in plan.runs
    } == {(7, 0.5, 2)}
    whole = of_the_paper("figure1", [], budget="full", seeds=1)
    assert {run.config.train.max_batches for run in whole.runs} == {10000}


def test_only_some_rows() -> None:
    plan = of_the_paper("table2", [], only="gru")
    assert plan.wanted == [f"cifar_gru_{name}" for name in ("bptt", "tbptt_accumulated", "bptt_aux", "tbptt", "fptt")]
    assert len(plan.runs) == 17 * 3, "the table has all"
    assert plan.command.endswith(" --only gru")


def test_what_is_set_need_only_suit_the_rows_that_are_trained() -> None:
    """Seven pixels a step divide the images of MNIST, not those of CIFAR-10."""
    plan = of_the_paper("table6", ["task.pixels_per_step=7"], only="pmnist")
    assert {run.config.task.sequence_length for run in plan.runs if run.row.name in plan.wanted} == {112}
    labels = [row.label for row in plan.table.rows]
    assert labels.count("FPTT, K = 11") == 2, "of 112 steps: permuted, and not"
    assert labels.count("FPTT, K = 32") == 1
    with pytest.raises(ConfigError, match=r"does not divide an image's 1024 pixels.*\n  in the row cifar_lstm_bptt"):
        of_the_paper("table6", ["task.pixels_per_step=7"])


# What is refused.


def test_a_word_that_tells_the_rows_apart() -> None:
    expected = {
        "seed=3": "reproduce trains every row with the seeds 0, 1, …: type --seeds 3 for three",
        "resume=never": "reproduce always resumes what is there: ",
        "algorithm=bptt": "algorithm tells the rows of figure2 apart: ",
        "model.layer=gru": "model.layer tells the rows of figure2 apart: ",
        "model.network=net": "model.network tells the rows of figure2 apart: ",
        "task.name=copying": "task.name tells the rows of figure2 apart: ",
        "fptt.windows=7": "fptt.windows tells the rows of figure2 apart: ",
        "fptt={windows: 7}": "fptt.windows tells the rows of figure2 apart: ",
        "task.length=100": "task.length tells the rows of figure2 apart: ",
    }
    said = {word: refused(word) for word in expected}
    plain = {word: word.replace("={", ".").strip("}").replace(": ", "=") for word in expected}
    wrong = {word: said[word] for word in expected if not said[word].startswith(f"{plain[word]}: {expected[word]}")}
    assert wrong == {}


def test_a_word_that_is_wrong() -> None:
    assert refused("optimizer.lrr=1") == (
        "optimizer.lrr: unknown key; did you mean optimizer.lr? (override optimizer.lrr=1)\n  in the row adding200_bptt"
    )
    assert refused("model.init=chrono", name="table2").endswith("  in the row cifar_antisymmetric_bptt")
    assert refused("run.folder=x").startswith("run.folder: unknown key")
    assert "given twice" in refused("train.max_epochs=1", "train={max_epochs: 2}")


def test_names_that_are_not_there() -> None:
    said = refused(name="figure4")
    assert said.startswith("figure4: no table or figure of the paper has this name; targets: table2, table3, ")
    assert "did you mean figure" in said
    assert refused(only="lsmt", name="table4") == (
        "--only lsmt: no row's name contains it; rows: ptb300_bptt, ptb300_tbptt_accumulated, ptb300_tbptt, "
        "ptb300_fptt, ptb300_tbptt_official, ptb300_fptt_official"
    )


def test_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="trains with one worker, and this is one of 2: start it without torchrun"):
        reproduce(plan_of())
    assert not Path("runs").exists()


def test_a_target_in_use(here: Path) -> None:
    plan = plan_of()
    for folder, lock, what in (
        (plan.folder, ".lock-mine", f"reproduce mine in {plan.folder}"),
        (run(plan, 1), ".lock", f"run.dir={run(plan, 1)}"),
    ):
        with hold(folder, "another", lock):
            with pytest.raises(ConfigError) as caught:
                reproduce(plan)
            assert [path for path in here.rglob("*") if path.is_file()] == [here / folder / lock]
        assert str(caught.value).startswith(f"{what} is in use by pid {os.getpid()} on ")


def test_two_targets_at_once() -> None:
    plan = plan_of()
    with hold(plan.folder, "another", ".lock-other"):
        reproduce(plan)
    assert not list(plan.folder.rglob(".lock*"))


def test_missing_data_end_it_before_anything_is_trained(here: Path) -> None:
    rows = [row("adding200_fptt"), row("smnist_lstm_fptt")]
    target = Target(title="Mine", unit="error", varies=(), rows=tuple(rows))
    short = [
        Shortened(families=("adding200",), smoke=SMALL, short={}),
        Shortened(families=("smnist_lstm",), smoke={}, short={}),
    ]
    plan = plan_of("data.root=nowhere", of=Tables(targets={"mine": target}, budgets=tuple(short)))
    with pytest.raises(DataError, match="fptt-dist data fetch mnist"):
        reproduce(plan)
    assert list(here.iterdir()) == []
    assert cells(reproduce(plan_of(of=Tables(targets={"mine": target}, budgets=tuple(short)), only="adding")))


def test_a_wrong_file_of_tables() -> None:
    one = "title: t, unit: u, varies: [], rows: [{config: a, label: b}]"
    expected = {
        "targets: {}": "is no file of tables, which has targets and budgets",
        "targets: {one: {}}\nbudgets: []": "one needs rows, a list",
        "targets: {one: {rows: [3]}}\nbudgets: []": "row 1 of one: 3 is no mapping",
        "targets: {one: {rows: [{config: a, label: b, papr: c}]}}\nbudgets: []": (
            r"papr: unknown key; did you mean paper or params\? \(mine.yaml, row 1 of one\)"
        ),
        "targets: {one: {title: t, rows: [{config: a, label: b}]}}\nbudgets: []": (
            r"unit: must be set; .* \(mine.yaml, one\)\nvaries: must be set"
        ),
        f"targets: {{one: {{{one}}}}}\nbudgets: [{{smoke: {{}}}}]": (
            r"families: must be set; .* \(mine.yaml, budget 1\)"
        ),
    }
    for text, message in expected.items():
        Path("mine.yaml").write_text(f"{text}\n")
        with pytest.raises(ConfigError, match=message):
            load_tables(Path("mine.yaml"))


def test_a_row_of_no_family() -> None:
    with pytest.raises(ConfigError, match="adding750_fptt is of none of the families adding200, adding500"):
        plan_of(of=tables(row("adding750_fptt")))


# Training.


def test_the_table_and_what_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    first = reproduce(plan_of(seeds=2))
    said = capfd.readouterr().err
    assert [line for line in said.splitlines() if "seed" in line] == [
        "1 of 4: adding200_bptt, seed 0 …",
        "2 of 4: adding200_bptt, seed 1 …",
        "3 of 4: adding200_fptt, seed 0 …",
        "4 of 4: adding200_fptt, seed 1 …",
    ]
    plan = plan_of(seeds=2)
    assert plan.table_path.read_text() == first
    assert [line[1].endswith("(2)") for line in cells(first).values()] == [True, True]
    assert load(run(plan, 3) / "config.yaml") == plan.runs[3].config
    before = {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()}
    for each in range(4):
        shutil.rmtree(run(plan, each) / "checkpoints")  # without which whoever trains begins anew
    assert reproduce(plan) == first
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"{n} of 4: adding200_{a}, seed {s}, finished before" for n, (a, s) in enumerate(ORDER, 1)]
    assert all(file.read_bytes() == content for file, content in before.items() if "checkpoints" not in file.parts)


ORDER = [("bptt", 0), ("bptt", 1), ("fptt", 0), ("fptt", 1)]


def test_a_run_of_another_configuration_is_refused_before_anything_is_trained() -> None:
    reproduce(plan_of(only="fptt"))
    table = plan_of().table_path.read_text()
    with pytest.raises(ConfigError, match=r"holds a run with another configuration:\n  optimizer.lr: 0.001 there, 0.5"):
        reproduce(plan_of("optimizer.lr=0.5"))
    assert not run(plan_of()).exists(), "the first row, which is new"
    assert plan_of().table_path.read_text() == table


def test_a_longer_run_goes_on() -> None:
    reproduce(plan_of(only="fptt"))
    plan = plan_of("train.max_batches=8", only="fptt")
    reproduce(plan)
    assert result(run(plan, 1))["batches"] == 8
    evaluations = [record["batch"] for record in records(run(plan, 1), "evaluation") if record["split"] == "validation"]
    assert evaluations == [2, 4, 6, 8], "each once"


def test_rows_that_are_not_wanted_say_so() -> None:
    found = cells(reproduce(plan_of(only="bptt")))
    assert found["adding200_bptt"][1].endswith("(1)")
    assert found["adding200_fptt"][1] == "not run"
    both = cells(reproduce(plan_of(only="fptt")))
    assert both["adding200_bptt"] == found["adding200_bptt"], "earlier runs stay in the table"
    assert both["adding200_fptt"][1].endswith("(1)")
    others = cells(reproduce(plan_of("optimizer.lr=0.5", "run.dir=elsewhere", only="fptt")))
    assert others["adding200_bptt"][1] == "not run"


def test_rows_that_were_trained_otherwise_are_not_in_the_table() -> None:
    """A figure stands beside the command that made it."""
    reproduce(plan_of("optimizer.lr=0.5", only="bptt"))
    assert cells(reproduce(plan_of(only="fptt")))["adding200_bptt"][1] == "not run"


def test_a_run_that_is_not_finite_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    rows = tables(row("adding200_fptt", set={"optimizer.lr": 1e35}), row("adding200_tbptt"))
    found = cells(reproduce(plan_of(of=rows)))
    assert list(found) == ["adding200_fptt", "adding200_tbptt"]
    assert found["adding200_fptt"][1].startswith("not finite (batch ")
    assert found["adding200_tbptt"][1].endswith("(1)")
    assert any(message.startswith("adding200_fptt-lr1e+35, seed 0: ") for message in caplog.messages)
    again = plan_of(of=rows)
    assert cells(reproduce(again)) == found
    note = json.loads((run(again) / "not_finite.json").read_text())
    assert f"batch {note['batch']}" in note["message"]


def test_the_pictures() -> None:
    rows = tables(row("adding200_fptt"), row("adding200_fptt", set={"fptt.windows": 5}), picture="curves")
    plan = plan_of(of=rows)
    reproduce(plan)
    assert plan.picture_path.read_bytes().startswith(b"\x89PNG")
    alone = plan_of()
    alone.picture_path.unlink()
    reproduce(alone)
    assert not alone.picture_path.exists()


def test_dynamic_evaluation_once_for_each_best_checkpoint(here: Path) -> None:
    rng = random.Random(0)
    (here / "text").mkdir()
    for name, count in (("train", 1000), ("valid", 100), ("test", 100)):
        (here / "text" / f"{name}.txt").write_text(" ".join(rng.choice("abcde") for _ in range(count)) + "\n")
    words = ["task.text_dir=text", "task.train_tokens=900", "task.eval_tokens=80", "device=cpu"]
    plan = of_the_paper("table5", words, budget="smoke", only="ptbw_bptt")
    text = reproduce(plan)
    file = plan.runs[[r.row.name for r in plan.runs].index("ptbw_bptt")].folder.path / "dynamic.json"
    said = json.loads(file.read_text())
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| BPTT")]
    assert [line[3] for line in found] == ["–", f"{said['test']:.2f} (1)"]
    file.write_text(json.dumps({**said, "test": 7.0}))
    assert "| 7.00 (1) |" in reproduce(plan), "kept"
    file.write_text(json.dumps({**said, "test": 7.0, "best_batch": 0}))
    assert reproduce(plan) == text, "of another checkpoint"


@pytest.mark.slow
def test_a_signal_leaves_the_table_so_far(tmp_path: Path, here: Path) -> None:
    words = ["figure1", "--budget", "smoke", f"run.dir={here}/all runs", "train.max_batches=40", "device=cpu"]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    program = Program(tmp_path / "log", ["-m", "fptt_dist", "reproduce", *words, "model.hidden=2"], environment)
    folder = here / "all runs" / "smoke"
    metrics = folder / "adding500_tbptt_accumulated-seed0" / "metrics.jsonl"
    try:
        program.wait_until(lambda: metrics.is_file() and metrics.stat().st_size > 0)
        program.process.send_signal(signal.SIGINT)
        assert program.end() == 130
    finally:
        program.kill()
    assert "stopped by a signal after batch" in program.text()
    found = cells((folder / "figure1.md").read_text())
    assert found["BPTT"][1].endswith("(1)")
    assert found["tbptt_accumulated, K = 22"][1].startswith("not finished (batch ")
    assert found["FPTT, K = 22"][1] == "not run"

    (hint,) = [line for line in program.text().splitlines() if line.startswith("resume with: fptt-dist ")]
    resumed = Program(tmp_path / "log", ["-m", "fptt_dist", *shlex.split(hint)[3:]], environment)
    try:
        assert resumed.end() == 0, resumed.text()
    finally:
        resumed.kill()
    assert all(line[1].endswith("(1)") for line in cells((folder / "figure1.md").read_text()).values())
    train(load(metrics.parent / "config.yaml", {"run.dir": f"{here}/straight", "resume": "never"}))
    assert_same_run(here / "straight", metrics.parent)


# The command.


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fptt-dist", "reproduce", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = command(
        monkeypatch,
        "figure1",
        "--budget",
        "smoke",
        "--only",
        "tbptt",
        "run.dir=mine",
        "device=cpu",
        "train.max_batches=2",
    )
    out = capsys.readouterr().out
    assert code == 0
    table = Path("mine/smoke/figure1.md").read_text()
    assert out == f"{table}\ntable: mine/smoke/figure1.md\nplot: mine/smoke/figures/figure1.png\n"


def test_a_mistake_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    for words, message in {
        "tabel4": "fptt-dist: tabel4: no table or figure of the paper has this name; targets: table2, ",
        "table4 seed=1": "fptt-dist: seed=1: reproduce trains every row with the seeds",
        "table4 data.root=nowhere": "fptt-dist: nowhere/ptb has no ptb.train.txt. Get the Penn Treebank with: ",
    }.items():
        assert command(monkeypatch, *words.split()) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(message)
        assert captured.out == ""
        assert list(here.iterdir()) == []


def test_the_packaged_file_is_read() -> None:
    assert (FOLDER / "tables.yaml").is_file()
    assert load_tables().targets["table4"].rows[0].config == "ptb300_bptt"


# Grids.


GRID = """
targets:
  one:
    title: t
    unit: u
    varies: []
    grids:
      - config: a
        heading: first
        set: {model.hidden: 3}
        cells: [lstm, lem]
        own: {lem: {model.step_size: 2.0}}
        algorithms: [bptt, fptt]
        only: {lem: [fptt]}
      - {config: b, heading: second, cells: [gru], algorithms: [tbptt]}
budgets: []
"""


def test_the_rows_of_a_grid() -> None:
    Path("mine.yaml").write_text(GRID)
    target = load_tables(Path("mine.yaml")).target("one")
    assert target.is_grid
    assert [(row.name, row.heading) for row in target.rows] == [
        ("a-lstm-bptt", "first"),
        ("a-lstm-fptt", ""),
        ("a-lem-fptt", ""),
        ("b-gru-tbptt", "second"),
    ]
    assert target.rows[2].set == {"model.layer": "lem", "model.hidden": 3, "model.step_size": 2.0, "algorithm": "fptt"}


def test_a_grid_is_checked() -> None:
    Path("mine.yaml").write_text(GRID.replace("heading: second", "headng: second"))
    with pytest.raises(ConfigError, match=r"headng: unknown key.*\(mine.yaml, grid 2 of one\)"):
        load_tables(Path("mine.yaml"))


def test_cells_side_by_side() -> None:
    grid = TargetGrid(
        config="adding200_fptt",
        heading="adding",
        set={"model.hidden": 4},
        cells=("lstm", "mingru"),
        algorithms=("bptt", "fptt"),
    )
    plan = plan_of(of=tables(*grid.rows, picture="cells"))
    table = cells(reproduce(plan))
    assert list(table)[-2:] == ["lstm", "mingru"]
    assert all(" (1); < 0.05 " in figure for figure in table["mingru"][1:3])
    assert plan.picture_path.is_file()
