"""The paper's rows as configurations: its figures, its parameters, and what tells the rows of a table apart."""

import re
from pathlib import Path

import pytest

from fptt_dist.config import Config, apply_overrides, changes, load
from fptt_dist.config.loader import PACKAGED, packaged, packaged_rows
from fptt_dist.launchers.paper_rows import Budget, Row, load_tables, row_config
from fptt_dist.launchers.reproduce import ROWS_DIFFER
from fptt_dist.models import AwdLstm, Network
from fptt_dist.models.recurrent import LAYERS
from fptt_dist.training.build import build_model

FILES = sorted(file.stem for file in (PACKAGED / "paper").glob("*.yaml") if file.name != "tables.yaml")
ROWS = [name for name in FILES if not name.startswith("cells_")]
TABLES = load_tables()
OF_THE_PAPER = [target for target in TABLES.targets if target != "cells"]

# Kag & Saligrama (2021), Tables 2 to 6: the rows that the authors ran themselves.
PAPER = {
    "table2": {
        "cifar_lstm_bptt": ("60.11", "67K"),
        "cifar_lstm_fptt": ("71.03", "67K"),
        "cifar_gru_bptt": ("66.28", "51K"),
        "cifar_gru_fptt": ("71.37", "51K"),
        "cifar_antisymmetric_bptt": ("62.41", "37K"),
        "cifar_antisymmetric_fptt": ("72.13", "37K"),
    },
    "table3": {
        "cifar_lstm_bptt": ("60.11", "67K"),
        "cifar_lstm_bptt_aux": ("65.65", "67K"),
        "cifar_lstm_fptt": ("71.03", "67K"),
    },
    "table4": {"ptb300_bptt": ("117.09", "210K"), "ptb300_fptt": ("106.27", "210K")},
    "table5": {
        "ptbc_bptt": ("1.183", "13.8M"),
        "ptbc_fptt": ("1.165", "13.8M"),
        "ptbw_bptt": ("51.9", "22M"),
        "ptbw_fptt": ("50.96", "22M"),
    },
    "table6": {
        "smnist_lstm_bptt": ("97.71", "66K"),
        "smnist_lstm_fptt": ("98.67", "66K"),
        "pmnist_lstm_bptt": ("88.91", "66K"),
        "pmnist_lstm_fptt": ("94.75", "66K"),
        "cifar_lstm_bptt": ("60.11", "67K"),
        "cifar_lstm_fptt": ("71.03", "67K"),
    },
}
AS_RELEASED = ("_k10", "_official")  # FPTT with the settings of the authors' code; it aims at the same figure

# PyTorch's layers: 4 h (i + h + 2), 3 h (i + h + 2); antisymmetric, gated: h (h − 1) / 2 + 2 h (i + 1).
RECURRENT = {
    "smnist_lstm": 4 * 128 * (1 + 128 + 2),
    "pmnist_lstm": 4 * 128 * (1 + 128 + 2),
    "cifar_lstm": 4 * 128 * (3 + 128 + 2),
    "cifar_gru": 3 * 128 * (3 + 128 + 2),
    "cifar_antisymmetric": 256 * 255 // 2 + 2 * 256 * (3 + 1),
    "adding200": 4 * 128 * (2 + 128 + 2),
    "ptb300": 4 * 128 * (280 + 128 + 2),
    "ptbc": 4 * 1000 * (200 + 1000 + 2) + 4 * 1000 * (1000 + 1000 + 2) + 4 * 200 * (1000 + 200 + 2),
    "ptbw": 4 * 960 * (280 + 960 + 2) + 4 * 960 * (960 + 960 + 2) + 4 * 620 * (960 + 620 + 2),
}
# What the paper prints, in thousands: counted how, and by 1000 or 1024.
PRINTED = {
    "smnist_lstm": (66, "recurrent", 1024),
    "pmnist_lstm": (66, "recurrent", 1024),
    "cifar_lstm": (67, "recurrent", 1024),
    "cifar_gru": (51, "recurrent", 1000),
    "cifar_antisymmetric": (37, "total", 1000),
    "ptb300": (210, "recurrent", 1000),
    "ptbc": (13800, "recurrent", 1000),
    "ptbw": (22000, "total", 1000),
}
LARGE = ("ptbc", "ptbw")


def config(name: str) -> Config:
    return load(PACKAGED / "paper" / f"{name}.yaml")


def family(name: str) -> str:
    known = [family for short in TABLES.budgets for family in short.families if f"{name}_".startswith(f"{family}_")]
    return max(known, key=len)


def rows(target: str) -> tuple[Row, ...]:
    return TABLES.targets[target].rows


def test_every_row_is_in_a_table_and_every_table_s_row_is_there() -> None:
    assert {row.config for target in TABLES.targets.values() for row in target.rows} == set(FILES)
    tables = [f"table{n}" for n in range(2, 7)]
    assert list(TABLES.targets) == [*tables, "figure1", "figure2", "figure3", "alpha", "cells"]
    assert packaged_rows() == [f"paper/{name}.yaml" for name in FILES]
    assert not [name for name in packaged() if name.startswith(("paper/", "presets/"))]


@pytest.mark.parametrize("target", PAPER)
def test_the_paper_s_figures(target: str) -> None:
    printed = {row.config: (row.paper, row.params) for row in rows(target) if row.paper is not None}
    own = {name: both for name, both in printed.items() if not name.endswith(AS_RELEASED)}
    assert own == PAPER[target]
    for name, both in printed.items():
        if name.endswith(AS_RELEASED):
            assert both == PAPER[target][f"{family(name)}_fptt"]
    assert all(row.params is None for row in rows(target) if row.paper is None)


def test_alpha_s_figure_is_that_of_table_4() -> None:
    assert [(row.name, row.paper) for row in rows("alpha") if row.paper] == [("ptb300_fptt", "106.27")]


@pytest.mark.parametrize("name", FILES)
def test_a_file_s_head_says_what_it_aims_at(name: str) -> None:
    head = "".join((PACKAGED / "paper" / f"{name}.yaml").read_text().splitlines(keepends=True)[:3])
    figures = {
        row.paper for target in TABLES.targets.values() for row in target.rows if row.config == name and row.paper
    }
    number = re.search(r"^# The paper: ([\d.]+) ", head, re.MULTILINE)
    assert ({number[1]} if number else set()) == figures
    if not figures:
        assert re.search(r"^# (Not in the paper: .|The paper: Figure )", head, re.MULTILINE)
    for windows in re.findall(r"K = (\d+)|(\d+) updates a sequence|of K = (\d+)", head.partition("\n")[0]):
        assert config(name).windows in {int(number) for number in windows if number}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_its_fptt_row_in_what_its_name_says(name: str) -> None:
    own = config(name)
    algorithm = name.removeprefix(f"{family(name)}_").removesuffix("_k10").removesuffix("_official")
    assert own.algorithm == algorithm
    differing = set(changes(config(f"{family(name)}_fptt"), own)) - {"algorithm"}
    if name.endswith("_k10"):
        assert differing == {
            *("fptt.windows", "fptt.remainder", "fptt.reset_weights", "fptt.reset_dual"),
            *("task.reads", "task.divergence", "task.estimate", "model.logit_dropout"),
        }
        assert set(changes(config(f"{family(name)}_fptt_k10"), own)) <= {"algorithm"}
    elif name.endswith("_official"):
        assert {"fptt.windows", "fptt.prox_weight", "fptt.reset_weights"} <= differing
        more = {"train.max_norm", "fptt.beta", "fptt.reset_dual", "optimizer.lr", "model.masks"}
        assert differing <= {"fptt.windows", "fptt.prox_weight", "fptt.reset_weights", *more}
    elif own.task.name == "pixels" and algorithm in ("bptt", "tbptt"):
        assert differing == {"task.reads"}, "their loss is the cross-entropy at the last step"
    elif family(name) == "ptbw" and algorithm in ("bptt", "tbptt"):
        assert differing == {"optimizer.lr"}, "one update a sequence, and not K"
    else:
        assert differing == set()


@pytest.mark.parametrize("name", [name for name in ROWS if not name.endswith(AS_RELEASED)])
def test_the_paper_s_rule_and_its_settings(name: str) -> None:
    own = config(name)
    assert own.fptt.windows is None
    assert own.windows_run == (1 if own.algorithm == "bptt" else round(own.task.sequence_length**0.5))
    alphas = {"pixels": 0.1, "adding": 0.5}
    alpha = alphas.get(own.task.name) or (0.5 if family(name) == "ptb300" else 0.2)
    assert (own.fptt.alpha, own.fptt.beta, own.fptt.dual_weight, own.fptt.prox_weight) == (alpha, 0.5, 1.0, 1.0)
    assert (own.fptt.update, own.fptt.metric, own.fptt.clip) == ("explicit", "euclidean", "total")
    assert not own.fptt.reset_weights
    assert not own.fptt.reset_dual


@pytest.mark.parametrize(
    ("name", "windows", "run", "prox", "beta", "resets", "lr", "max_norm"),
    [
        ("smnist_lstm_fptt_k10", 10, 11, 1.0, 0.5, (True, True), 1e-3, 1.0),
        ("pmnist_lstm_online_k10", 10, 11, 1.0, 0.5, (True, True), 1e-3, 1.0),
        ("cifar_lstm_fptt_k10", 10, 11, 1.0, 0.5, (True, True), 1e-3, 1.0),
        ("ptb300_fptt_official", 6, 6, 2.0, 0.5, (True, False), 2.0, None),
        ("ptbc_fptt_official", 3, 3, 2.0, 0.5, (True, False), 2e-3 / 6, 0.25),
        ("ptbw_fptt_official", 3, 3, 2.0, 0.7, (True, True), 20 / 6, 0.2),
    ],
)
def test_the_authors_code(
    name: str,
    windows: int,
    run: int,
    prox: float,
    beta: float,
    resets: tuple[bool, bool],
    lr: float,
    max_norm: float | None,
) -> None:
    own = config(name)
    assert (own.windows, own.windows_run) == (windows, run)
    assert (own.fptt.prox_weight, own.fptt.dual_weight, own.fptt.beta) == (prox, 1.0, beta)
    assert (own.fptt.reset_weights, own.fptt.reset_dual) == resets
    assert own.optimizer.lr == pytest.approx(lr, rel=1e-4)
    assert own.train.max_norm == max_norm


@pytest.mark.parametrize("name", ["ptbw_fptt", "ptbw_online", "ptbw_fptt_official"])
def test_the_learning_rate_of_k_updates(name: str) -> None:
    assert config(name).optimizer.lr == pytest.approx(
        config("ptbw_bptt").optimizer.lr / (2 * config(name).windows), 1e-4
    )


@pytest.mark.parametrize(
    ("name", "length", "batch", "epochs", "batches"),
    [
        ("smnist_lstm", 784, 128, 200, None),
        ("pmnist_lstm", 784, 128, 200, None),
        ("cifar_lstm", 1024, 128, 200, None),
        ("cifar_gru", 1024, 128, 200, None),
        ("cifar_antisymmetric", 1024, 128, 200, None),
        ("adding200", 200, 128, None, 10000),
        ("adding500", 500, 128, None, 10000),
        ("adding750", 750, 128, None, 10000),
        ("adding1000", 1000, 128, None, 10000),
        ("ptb300", 300, 128, 100, None),
        ("ptbc", 150, 128, 500, None),
        ("ptbw", 70, 6, 1000, None),
    ],
)
def test_the_tasks(name: str, length: int, batch: int, epochs: int | None, batches: int | None) -> None:
    own = config(f"{name}_fptt")
    assert own.task.sequence_length == length
    assert (own.train.batch_size, own.train.epochs, own.train.batches) == (batch, epochs, batches)


@pytest.mark.parametrize("budget", ["smoke", "short", "full"])
@pytest.mark.parametrize("target", OF_THE_PAPER)
def test_every_row_resolves(target: str, budget: Budget) -> None:
    full = {row.name: config(row.config) for row in rows(target)}
    for row in rows(target):
        own = row_config(TABLES, row, budget)
        differing = set(changes(full[row.name], own))
        assert row.set.keys() <= differing
        if budget == "full":
            assert own == apply_overrides(full[row.name], row.set)
        elif budget == "short":
            assert differing <= {"train.epochs", "train.batches", "schedule.milestones", *row.set}
        else:
            assert not differing & set(ROWS_DIFFER)
            assert not differing & {key for key in TABLES.targets[target].varies if key not in row.set}
            assert own.task.sequence_length == full[row.name].task.sequence_length


@pytest.mark.parametrize("target", OF_THE_PAPER)
def test_no_override_may_set_what_tells_the_rows_apart(target: str) -> None:
    """Of one task and model: between those the paper's own settings differ, which an override may make the same."""
    known = {*ROWS_DIFFER, *TABLES.targets[target].varies}
    families: dict[str, list[Config]] = {}
    for row in rows(target):
        families.setdefault(family(row.config), []).append(row_config(TABLES, row, "full"))
    for configs in families.values():
        assert {key for own in configs for key in changes(configs[0], own)} <= known


def test_what_the_figures_vary() -> None:
    windows = [row_config(TABLES, row, "full").windows for row in rows("figure2") if row.set]
    assert windows == [1, 3, 5, 10, 100, 200]
    configs = [row_config(TABLES, row, "full") for row in rows("alpha")]
    alphas = [own.fptt.alpha if own.algorithm == "fptt" else 0.0 for own in configs]
    assert alphas == [1.0, 0.8, 0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0]
    for figure, lengths in (("figure1", {500}), ("figure2", {200}), ("figure3", {750, 1000})):
        assert {config(row.config).task.sequence_length for row in rows(figure)} == lengths


@pytest.mark.parametrize("target", OF_THE_PAPER)
def test_every_task_has_its_baselines(target: str) -> None:
    if target == "alpha":
        return
    wanted: dict[str, set[str]] = {}
    for row in rows(target):
        wanted.setdefault(family(row.config), set()).add(config(row.config).algorithm)
    for name, algorithms in wanted.items():
        assert algorithms == {"bptt", "tbptt", "online", "fptt"} | (set() if name.startswith("ptb") else {"bptt_aux"})


@pytest.mark.parametrize("budget", ["smoke", "short", "full"])
def test_every_cell_has_a_row_for_every_algorithm(budget: Budget) -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for row in rows("cells"):
        own = row_config(TABLES, row, budget)
        assert (own.model.cell, own.algorithm) == (row.label, row.column)
        assert own.model.hidden == 64
        assert row.name == f"{row.config}-{own.model.cell}-{own.algorithm}"
        found.setdefault(row.config, set()).add((row.label, row.column))
    every = {(cell, algorithm) for cell in LAYERS for algorithm in ("bptt", "online", "fptt")}
    every -= {("trellis", "online"), ("trellis", "fptt")}
    two = {pair for pair in every if pair[0] in ("lstm", "ltc")}
    assert found == {
        **dict.fromkeys(("cells_smnist", "cells_pmnist"), every),
        **dict.fromkeys(("cells_adding200", "cells_adding500", "cells_adding1000"), two),
    }


def test_cells_differ_in_nothing_but_the_cell() -> None:
    for budget in ("short", "full"):
        configs: dict[str, list[Config]] = {}
        for row in rows("cells"):
            configs.setdefault(row.config, []).append(row_config(TABLES, row, budget))
        for own in configs.values():
            for other in own:
                keys = {key for key in changes(own[0], other) if not key.startswith("model.")}
                assert keys <= {"algorithm"}


class Shapes:
    """What a network needs to know of a task."""

    def __init__(self, own: Config) -> None:
        channels = 3 if getattr(own.task, "dataset", "") == "cifar10" else 1
        self.inputs = {"adding": 2, "pixels": channels, "language": 1}[own.task.name]
        self.outputs = {"adding": 1, "pixels": 10}.get(own.task.name, 0)
        self.vocabulary_size = None
        if own.task.name == "language":
            self.vocabulary_size = self.outputs = 10000 if getattr(own.task, "units", "") == "words" else 50
        self.length = own.task.sequence_length
        self.loss = self
        self.reads = getattr(own.task, "reads", "every")


def built(name: str) -> Network | AwdLstm:
    own = config(name)
    return build_model(own, Shapes(own))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in RECURRENT]
)
def test_the_paper_s_parameters(name: str) -> None:
    counts = built(f"{name}_fptt").parameter_counts()
    assert counts["recurrent"] == RECURRENT[name]
    if name not in PRINTED:
        return
    number, counted, thousand = PRINTED[name]
    assert abs(counts[counted] / thousand - number) <= {"ptbc": 50, "ptbw": 500}.get(name, 0.5)
    all_rows = [row for target in TABLES.targets.values() for row in target.rows if family(row.config) == name]
    texts = {row.params for row in all_rows if row.params}
    assert texts == {f"{number / 1000:g}M" if name in LARGE else f"{number}K"}


@pytest.mark.parametrize("name", ["paper", "paper_images", "official", "official_images", "algorithm2"])
def test_presets_are_laid_over_a_configuration(name: str, tmp_path: Path) -> None:
    base = "mnist_rows" if name.endswith("_images") else "add_task"
    file = tmp_path / "own.yaml"
    file.write_text(f"extends: [configs/{base}.yaml, configs/presets/{name}.yaml]\n")
    own = load(file)
    expected = {
        "paper": ("euclidean", "explicit", 1.0, 1.0, False),
        "official": ("euclidean", "explicit", 1.0, 1.0 if name.endswith("_images") else 2.0, True),
        "algorithm2": ("euclidean", "algorithm2", 0.5, 1.0, False),
    }[name.removesuffix("_images")]
    fptt = own.fptt
    assert (fptt.metric, fptt.update, fptt.dual_weight, fptt.prox_weight, fptt.reset_weights) == expected
    assert fptt.alpha == load(base).fptt.alpha
    if name.startswith("paper"):
        assert own.windows == round(own.task.sequence_length**0.5)
