"""A run that starts from another's weights, and parameters that stay as they are."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fptt_dist import load
from fptt_dist.config import ConfigError
from fptt_dist.training.run import train
from fptt_dist.training.saved_run import open_run
from tests.training.helpers import TINY, assert_same_run, isolated, resumed, tiny, train_until
from tests.training.texts import tiny_text


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A finished run, whose best checkpoint is not its newest one."""
    train(tiny(tmp_path / "source", {"evaluate.every_batches": 1, "optimizer.lr": 0.05}, batches=12))
    return tmp_path / "source"


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def first(folder: Path, source: Path | str, **keys: Any) -> dict[str, torch.Tensor]:
    """Return the weights before the first update: a run of one batch with learning rate 1e-300."""
    train(tiny(folder, {"model.init_from": str(source), "optimizer.lr": 1e-300, "seed": 7, **keys}, batches=1))
    return weights(load(folder, "latest"))


def test_the_weights_are_those_that_the_other_run_evaluates(source: Path, tmp_path: Path) -> None:
    for which in ("best", "latest"):
        found, expected = first(tmp_path / which, f"{source}:{which}"), weights(load(source, which))  # pyright: ignore
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not all(torch.equal(a, b) for a, b in zip(weights(load(source)).values(), expected.values(), strict=True))


def test_names_take_a_part_and_leave_the_rest_new(source: Path, tmp_path: Path) -> None:
    new = first(tmp_path / "new", source, **{"model.init_from": None})
    found = first(tmp_path / "part", source, **{"model.init_names": ["recurrent"]})
    trained = weights(load(source))
    for name, value in found.items():
        assert torch.equal(value, (trained if name.startswith("recurrent.") else new)[name]), name


def test_the_source_is_needed_at_the_start_alone(source: Path, tmp_path: Path) -> None:
    keys = {"model.init_from": str(source)}
    train(tiny(tmp_path / "straight", keys))
    parts = tiny(tmp_path / "parts", keys)
    train_until(parts, 5)
    shutil.rmtree(source)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_frozen_parameters_stay_and_the_others_train_as_in_torch(source: Path, tmp_path: Path) -> None:
    """A plain loop, in which the recurrent parameters need no gradient, gives the same bit for bit."""
    keys = {"model.init_from": str(source), "model.freeze": ["recurrent"], "algorithm": "bptt", "train.max_norm": None}
    run = tmp_path / "run"
    train(tiny(run, {**keys, "optimizer.name": "adamw", "optimizer.weight_decay": 0.1}, batches=3))
    opened = open_run(run, "latest", with_task=True)
    assert opened.task is not None
    model = load(source)
    before = weights(model)
    named = {name: p.requires_grad_(not name.startswith("recurrent.")) for name, p in model.named_parameters()}
    trained = [p for p in named.values() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=TINY["optimizer.lr"], weight_decay=0.1, foreach=True)
    for number in range(3):
        batch = opened.task.train_batch(0, 4 * number, 4, slice(0, 4))
        loss = functional.mse_loss(model(batch.inputs)[0][-1], batch.targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
    after = weights(opened.network)
    assert all(torch.equal(after[name], p) for name, p in named.items())
    assert all(torch.equal(after[name], before[name]) == name.startswith("recurrent.") for name in after)


def test_a_frozen_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    keys = {"model.freeze": ["recurrent.weight_hh_l0", "readout.bias"], "model.layers": 2, "model.dropout": 0.2}
    train(tiny(tmp_path / "straight", keys))
    parts = tiny(tmp_path / "parts", keys)
    train_until(parts, 5)
    train(resumed(parts))
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


def test_mistakes(subtests: pytest.Subtests, source: Path, tmp_path: Path) -> None:
    new = {"model.init_from": None}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model.init_from": str(tmp_path / "no")}, "no:best: "),
        (
            {"model.hidden": 5},
            "recurrent.weight_ih_l0 has shape (16, 2) there and (20, 2) here: type that run's model.*",
        ),
        ({"model.layer": "gru"}, "(12, 2) here: type model.init_names=[readout] to leave it new"),
        (
            {"model.layers": 2},
            "lacks recurrent.weight_ih_l1, recurrent.weight_hh_l1, recurrent.bias_ih_l1, …: type model.",
        ),
        (
            {"model.init_names": ["recurent"]},
            "model.init_names: the network has no parameter recurent: did you mean recu",
        ),
        (
            {**new, "model.freeze": ["recurrent", "readout"]},
            "leaves no parameter to train: name fewer of recurrent, rea",
        ),
        ({**new, "model.freeze": ["head"]}, "model.freeze: the network has no parameter head: "),
        ({**new, "model.init_names": ["readout"]}, "model.init_names=[readout] has no effect without model.init_from"),
    ]
    for keys, said in cases:
        with subtests.test(**{key.replace(".", "_"): str(value) for key, value in keys.items()}):
            with pytest.raises(ConfigError) as caught:
                train(tiny(tmp_path / "run", {"model.init_from": str(source), **keys}))
            assert said in str(caught.value)
            assert not (tmp_path / "run").exists()


def test_a_text_of_other_symbols_gives_no_rows_of_symbols(tmp_path: Path) -> None:
    train(tiny_text(tmp_path / "source", batches=1))
    other = tiny_text(tmp_path / "run", {"model.init_from": str(tmp_path / "source")}, batches=1)
    folder = Path(str(other.task.model_dump()["text_dir"]))
    for file in folder.glob("*.txt"):
        file.write_text(file.read_text().replace("a", "z"))
    said = r"was trained on another vocabulary, .* have a row for each symbol: type model\.init_names=\[recurrent\]"
    with pytest.raises(ConfigError, match=said):
        train(other)
    train(tiny_text(tmp_path / "run", {"model.init_from": str(tmp_path / "source"), "model.init_names": ["recurrent"]}))
