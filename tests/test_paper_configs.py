"""The paper's rows as configurations: its figures, its parameters, and what tells the rows of a table apart."""

import itertools
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from fptt_dist.config import Config, WholeNetwork, apply_overrides, changes, load
from fptt_dist.config.loading.loader import PACKAGED, packaged, packaged_rows
from fptt_dist.launchers.paper.reproduce import ROWS_DIFFER
from fptt_dist.launchers.paper.rows import Budget, TargetRow, load_tables, row_config
from fptt_dist.models import AwdLstm, Network
from fptt_dist.models.recurrent import LAYERS
from fptt_dist.tasks import TaskShape
from fptt_dist.training.setup.factory import build_model

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


@cache
def config(name: str) -> Config:
    return load(PACKAGED / "paper" / f"{name}.yaml")


def family(name: str) -> str:
    known = [family for short in TABLES.budgets for family in short.families if f"{name}_".startswith(f"{family}_")]
    return max(known, key=len)


def rows(target: str) -> tuple[TargetRow, ...]:
    return TABLES.targets[target].rows


@cache
def resolved(target: str, budget: Budget) -> dict[str, Config]:
    return {row.name: row_config(TABLES, row, budget) for row in rows(target)}


def test_every_row_is_in_a_table_and_every_table_s_row_is_there() -> None:
    assert {row.config for target in TABLES.targets.values() for row in target.rows} == set(FILES)
    tables = [f"table{n}" for n in range(2, 7)]
    assert list(TABLES.targets) == [*tables, "figure1", "figure2", "figure3", "alpha", "cells"]
    assert packaged_rows() == [f"paper/{name}.yaml" for name in FILES]
    assert not [name for name in packaged() if name.startswith(("paper/", "presets/"))]


def test_the_paper_s_figures() -> None:
    for target, expected in PAPER.items():
        printed = {row.config: (row.paper, row.params) for row in rows(target) if row.paper is not None}
        own = {name: both for name, both in printed.items() if not name.endswith(AS_RELEASED)}
        assert own == expected, target
        for name, both in printed.items():
            if name.endswith(AS_RELEASED):
                assert both == expected[f"{family(name)}_fptt"], (target, name)
        assert all(row.params is None for row in rows(target) if row.paper is None), target


def test_alpha_s_figure_is_that_of_table_4() -> None:
    assert [(row.name, row.paper) for row in rows("alpha") if row.paper] == [("ptb300_fptt", "106.27")]


def test_a_file_s_head_says_what_it_aims_at() -> None:
    wrong = []
    for name in FILES:
        head = "".join((PACKAGED / "paper" / f"{name}.yaml").read_text().splitlines(keepends=True)[:3])
        every = [row for target in TABLES.targets.values() for row in target.rows if row.config == name]
        figures = {row.paper for row in every if row.paper}
        number = re.search(r"^# The paper: ([\d.]+) ", head, re.MULTILINE)
        right = ({number[1]} if number else set()) == figures
        right &= bool(figures or re.search(r"^# (Not in the paper: .|The paper: Figure )", head, re.MULTILINE))
        windows = re.findall(r"K = (\d+)|(\d+) updates a sequence|of K = (\d+)", head.partition("\n")[0])
        if not right or any(
            config(name).windows not in {int(number) for number in found if number} for found in windows
        ):
            wrong.append((name, head, figures))
    assert wrong == []


def test_a_row_differs_from_its_fptt_row_in_what_its_name_says() -> None:
    k10 = {"fptt.windows", "fptt.window_remainder", "fptt.reset_weights", "fptt.reset_dual"}
    k10 |= {"task.loss_steps", "task.kl_reduction", "task.target_estimate", "model.output_dropout"}
    official = {"fptt.windows", "fptt.prox_weight", "fptt.reset_weights"}
    more = {"train.max_norm", "fptt.beta", "fptt.reset_dual", "optimizer.lr", "model.dropout_mask_scope"}
    found, expected = {}, {}
    for name in ROWS:
        own = config(name)
        algorithm = name.removeprefix(f"{family(name)}_").removesuffix("_k10").removesuffix("_official")
        differing = set(changes(config(f"{family(name)}_fptt"), own)) - {"algorithm"}
        by_windows = own.task.name == "pixels" or family(name) == "ptbw"
        if name.endswith("_k10"):
            wanted = k10
            assert set(changes(config(f"{family(name)}_fptt_k10"), own)) <= {"algorithm"}
        elif name.endswith("_official"):
            wanted = official | (differing & more)
        elif by_windows and algorithm in ("bptt", "tbptt_accumulated"):
            # the loss of images is the cross-entropy at the last step; of words there is one update a sequence, not K
            wanted = {"task.loss_steps"} if own.task.name == "pixels" else {"optimizer.lr"}
        else:
            wanted = set()
        found[name], expected[name] = (own.algorithm, differing), (algorithm, wanted)
    assert found == expected


def test_the_paper_s_rule_and_its_settings() -> None:
    alphas = {"pixels": 0.1, "adding": 0.5}
    found, expected = {}, {}
    for name in (name for name in ROWS if not name.endswith(AS_RELEASED)):
        own, fptt = config(name), config(name).fptt
        weights = (fptt.alpha, fptt.beta, fptt.dual_weight, fptt.prox_weight)
        kind = (fptt.update_rule, fptt.metric, fptt.clip_scope, fptt.reset_weights, fptt.reset_dual)
        found[name] = (fptt.windows, own.windows_run, *weights, *kind)
        windows = 1 if own.algorithm == "bptt" else round(own.task.sequence_length**0.5)
        alpha = alphas.get(own.task.name) or (0.5 if family(name) == "ptb300" else 0.2)
        expected[name] = (None, windows, alpha, 0.5, 1.0, 1.0, "gradient", "euclidean", "total", False, False)
    assert found == expected


def test_the_authors_code() -> None:
    expected = {  # K, windows run; weights of the regularizer, β; what is reset; learning rate and norm
        "smnist_lstm_fptt_k10": (10, 11, 1.0, 1.0, 0.5, True, True, 1e-3, 1.0),
        "pmnist_lstm_tbptt_k10": (10, 11, 1.0, 1.0, 0.5, True, True, 1e-3, 1.0),
        "cifar_lstm_fptt_k10": (10, 11, 1.0, 1.0, 0.5, True, True, 1e-3, 1.0),
        "ptb300_fptt_official": (6, 6, 2.0, 1.0, 0.5, True, False, 2.0, None),
        "ptbc_fptt_official": (3, 3, 2.0, 1.0, 0.5, True, False, 2e-3 / 6, 0.25),
        "ptbw_fptt_official": (3, 3, 2.0, 1.0, 0.7, True, True, 20 / 6, 0.2),
    }
    found = {}
    for name in expected:
        own, fptt = config(name), config(name).fptt
        weights = (fptt.prox_weight, fptt.dual_weight, fptt.beta, fptt.reset_weights, fptt.reset_dual)
        lr = pytest.approx(own.optimizer.lr, rel=1e-4)
        found[name] = (own.windows, own.windows_run, *weights, lr, own.train.max_norm)
    assert found == expected


def test_the_learning_rate_of_k_updates() -> None:
    for name in ("ptbw_fptt", "ptbw_tbptt", "ptbw_fptt_official"):
        rate = config("ptbw_bptt").optimizer.lr / (2 * config(name).windows)
        assert config(name).optimizer.lr == pytest.approx(rate, 1e-4), name


def test_the_tasks() -> None:
    expected = {  # steps, batch size, epochs, batches
        "smnist_lstm": (784, 128, 200, None),
        "pmnist_lstm": (784, 128, 200, None),
        "cifar_lstm": (1024, 128, 200, None),
        "cifar_gru": (1024, 128, 200, None),
        "cifar_antisymmetric": (1024, 128, 200, None),
        "adding200": (200, 128, None, 10000),
        "adding500": (500, 128, None, 10000),
        "adding750": (750, 128, None, 10000),
        "adding1000": (1000, 128, None, 10000),
        "ptb300": (300, 128, 100, None),
        "ptbc": (150, 128, 500, None),
        "ptbw": (70, 6, 1000, None),
    }
    configs = {name: config(f"{name}_fptt") for name in expected}
    assert {
        name: (own.task.sequence_length, own.train.batch_size, own.train.max_epochs, own.train.max_batches)
        for name, own in configs.items()
    } == expected


def test_every_row_resolves() -> None:
    wrong = []
    budgets: tuple[Budget, ...] = ("smoke", "short", "full")
    for target, budget in itertools.product(OF_THE_PAPER, budgets):
        for row in rows(target):
            full, own = config(row.config), resolved(target, budget)[row.name]
            differing = set(changes(full, own))
            varies = {key for key in TABLES.targets[target].varies if key not in row.set}
            right = {
                "full": own == apply_overrides(full, row.set),
                "short": differing <= {"train.max_epochs", "train.max_batches", "schedule.milestones", *row.set},
                "smoke": differing.isdisjoint({*ROWS_DIFFER, *varies})
                and own.task.sequence_length == full.task.sequence_length,
            }[budget]
            if not right or not row.set.keys() <= differing:
                wrong.append((target, budget, row.name, differing))
    assert wrong == []


def test_no_override_may_set_what_tells_the_rows_apart() -> None:
    """Of one task and model: between those the paper's own settings differ, which an override may make the same."""
    for target in OF_THE_PAPER:
        known = {*ROWS_DIFFER, *TABLES.targets[target].varies}
        families: dict[str, list[Config]] = {}
        for row in rows(target):
            families.setdefault(family(row.config), []).append(resolved(target, "full")[row.name])
        for configs in families.values():
            assert {key for own in configs for key in changes(configs[0], own)} <= known, target


def test_what_the_figures_vary() -> None:
    windows = [resolved("figure2", "full")[row.name].windows for row in rows("figure2") if row.set]
    assert windows == [1, 3, 5, 10, 100, 200]
    configs = list(resolved("alpha", "full").values())
    alphas = [own.fptt.alpha if own.algorithm == "fptt" else 0.0 for own in configs]
    assert alphas == [1.0, 0.8, 0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0]
    for figure, lengths in (("figure1", {500}), ("figure2", {200}), ("figure3", {750, 1000})):
        assert {config(row.config).task.sequence_length for row in rows(figure)} == lengths


def test_every_task_has_its_baselines() -> None:
    found: dict[tuple[str, str], set[str]] = {}
    for target in OF_THE_PAPER:
        for row in rows(target) if target != "alpha" else ():
            found.setdefault((target, family(row.config)), set()).add(config(row.config).algorithm)
    every = {"bptt", "tbptt_accumulated", "tbptt", "fptt"}
    assert found == {each: every if each[1].startswith("ptb") else every | {"bptt_aux"} for each in found}


def test_every_cell_has_a_row_for_every_algorithm() -> None:
    every = {(cell, algorithm) for cell in LAYERS for algorithm in ("bptt", "tbptt", "fptt")}
    every -= {("trellis", "tbptt"), ("trellis", "fptt")}
    two = {pair for pair in every if pair[0] in ("lstm", "ltc")}
    budgets: tuple[Budget, ...] = ("smoke", "short", "full")
    for budget in budgets:
        found: dict[str, set[tuple[str, str]]] = {}
        for row in rows("cells"):
            own = resolved("cells", budget)[row.name]
            assert not isinstance(own.model, WholeNetwork)
            assert (own.model.layer, own.algorithm) == (row.label, row.column)
            assert own.model.model_dump()["hidden"] == 64
            assert row.name == f"{row.config}-{own.model.layer}-{own.algorithm}"
            found.setdefault(row.config, set()).add((row.label, row.column))
        assert found == {
            **dict.fromkeys(("cells_smnist", "cells_pmnist"), every),
            **dict.fromkeys(("cells_adding200", "cells_adding500", "cells_adding1000"), two),
        }, budget


def test_cells_differ_in_nothing_but_the_cell() -> None:
    for budget in ("short", "full"):
        configs: dict[str, list[Config]] = {}
        for row in rows("cells"):
            configs.setdefault(row.config, []).append(resolved("cells", budget)[row.name])
        for own in configs.values():
            for other in own:
                keys = {key for key in changes(own[0], other) if not key.startswith("model.")}
                assert keys <= {"algorithm"}


def shape_of(own: Config) -> TaskShape:
    """Return what a network needs to know of a task, without its data."""
    symbols = None
    if own.task.name == "language":
        symbols = 10000 if getattr(own.task, "token_level", "") == "word" else 50
    return TaskShape(
        inputs=3 if getattr(own.task, "dataset", "") == "cifar10" else {"adding": 2}.get(own.task.name, 1),
        outputs=symbols or {"adding": 1, "pixels": 10}[own.task.name],
        length=own.task.sequence_length,
        vocabulary_size=symbols,
        output_steps=getattr(own.task, "loss_steps", "all"),
    )


def built(name: str) -> Network | AwdLstm:
    own = config(name)
    network = build_model(own, shape_of(own))
    assert isinstance(network, Network | AwdLstm)
    return network


def check_parameters(names: Iterable[str]) -> None:
    counts = {name: built(f"{name}_fptt").parameter_counts() for name in names}
    assert {name: each["recurrent"] for name, each in counts.items()} == {name: RECURRENT[name] for name in counts}
    for name in counts.keys() & PRINTED.keys():
        number, counted, thousand = PRINTED[name]
        assert abs(counts[name][counted] / thousand - number) <= {"ptbc": 50, "ptbw": 500}.get(name, 0.5), name
        all_rows = [row for target in TABLES.targets.values() for row in target.rows if family(row.config) == name]
        texts = {row.params for row in all_rows if row.params}
        assert texts == {f"{number / 1000:g}M" if name in LARGE else f"{number}K"}, name


def test_the_paper_s_parameters() -> None:
    check_parameters(RECURRENT.keys() - LARGE)


@pytest.mark.slow
def test_the_parameters_of_the_large_models() -> None:
    check_parameters(LARGE)


def test_presets_are_laid_over_a_configuration(tmp_path: Path) -> None:
    expected = {
        "paper": ("euclidean", "gradient", 1.0, 1.0, False),
        "paper_images": ("euclidean", "gradient", 1.0, 1.0, False),
        "official": ("euclidean", "gradient", 1.0, 2.0, True),
        "official_images": ("euclidean", "gradient", 1.0, 1.0, True),
        "second_gradient": ("euclidean", "second_gradient", 0.5, 1.0, False),
    }
    found = {}
    for name in expected:
        base = "mnist_rows" if name.endswith("_images") else "add_task"
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"extends: [configs/{base}.yaml, configs/presets/{name}.yaml]\n")
        own, fptt = load(file), load(file).fptt
        found[name] = (fptt.metric, fptt.update_rule, fptt.dual_weight, fptt.prox_weight, fptt.reset_weights)
        assert fptt.alpha == load(base).fptt.alpha, name
        assert not name.startswith("paper") or own.windows == round(own.task.sequence_length**0.5), name
    assert found == expected
