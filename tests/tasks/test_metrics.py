"""The metrics by name: values as scikit-learn's for any division among workers, fitting targets, and messages."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fptt_dist.parallel import Communicator
from fptt_dist.tasks import DataError
from fptt_dist.tasks.metrics import FITTING, Targets, TaskMetrics, naive_scale
from fptt_dist.training.evaluation import evaluate
from tests.parallel.replicas import together
from tests.tasks.metrics import HORIZON, SCALE, SIZES, Echo, Given, measured, sequences

SHARES = {1: [11], 2: [8, 3], 3: [6, 0, 5]}
CPU = torch.device("cpu")


def values_of(task: Given, everyone: Communicator, split: Any = "validation") -> dict[str, float]:
    return evaluate(Echo(), task, everyone, split, CPU)


def on_workers(task: Given) -> list[dict[str, float]]:
    return together(len(task.shares), lambda everyone: values_of(task, everyone))


def gathered(kind: Targets, found: list[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """All predictions and targets in one array each, as scikit-learn takes them."""
    if kind in ("step_class", "step_value"):
        outputs, targets = (torch.cat([pair[i] for pair in found]) for i in (0, 1))
    else:
        outputs = torch.stack([output[-1] for output, _ in found])
        targets = torch.stack([target for _, target in found])
    if kind == "forecast":
        outputs, targets = outputs.reshape(-1, SIZES[kind]), targets.reshape(-1, SIZES[kind])
    outputs = outputs.float().double()  # as the network gives them
    if kind in ("class", "step_class"):
        outputs = outputs.softmax(-1)
    elif kind == "labels":
        outputs = outputs.sigmoid()
    return outputs.numpy(), targets.numpy()


def by_scikit_learn(name: str, kind: Targets, outputs: np.ndarray, targets: np.ndarray) -> float:
    learn = pytest.importorskip("sklearn.metrics")
    if kind == "labels":
        chosen = (outputs > 0.5).astype(int)
        return {
            "accuracy": lambda: learn.accuracy_score(targets, chosen),
            "macro_f1": lambda: learn.f1_score(targets, chosen, average="macro", zero_division=0),
            "auroc": lambda: learn.roc_auc_score(targets, outputs, average="macro"),
        }[name]()
    chosen = outputs.argmax(-1)
    wanted: dict[str, Callable[[], float]] = {
        "accuracy": lambda: learn.accuracy_score(targets, chosen),
        "balanced_accuracy": lambda: learn.balanced_accuracy_score(targets, chosen),
        "macro_f1": lambda: learn.f1_score(targets, chosen, average="macro", zero_division=0),
        "auroc": lambda: learn.roc_auc_score(targets, outputs, multi_class="ovr", average="macro"),
        "mae": lambda: learn.mean_absolute_error(targets, outputs),
        "rmse": lambda: math.sqrt(learn.mean_squared_error(targets, outputs)),
        "mase": lambda: learn.mean_absolute_error(targets / SCALE.numpy(), outputs / SCALE.numpy()),
    }
    return wanted[name]()


@pytest.mark.parametrize("world", SHARES)
@pytest.mark.parametrize("kind", FITTING)
def test_values_are_scikit_learns_for_any_shares(kind: Targets, world: int) -> None:
    """Two workers have unequal shares; of three one has none. Some classes of the targets are missing on a worker."""
    found = sequences(kind)
    task = Given(measured(kind, FITTING[kind]), found, SHARES[world])
    outputs, targets = gathered(kind, found)
    expected = {name: by_scikit_learn(name, kind, outputs, targets) for name in FITTING[kind]}
    answers = on_workers(task)
    assert answers[0] == pytest.approx(expected, rel=1e-6)
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.parametrize("world", SHARES)
def test_a_class_that_a_split_lacks_counts_as_scikit_learn_has_it(world: int) -> None:
    found = sequences("class", classes=(0, 2))
    names = ("balanced_accuracy", "macro_f1", "accuracy")
    outputs, targets = gathered("class", found)
    assert set(outputs.argmax(-1)) - {0, 2}  # others are predicted
    expected = {name: by_scikit_learn(name, "class", outputs, targets) for name in names}
    assert on_workers(Given(measured("class", names), found, SHARES[world]))[0] == pytest.approx(expected, rel=1e-6)


def test_auroc_leaves_out_a_class_that_a_split_lacks() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    found = sequences("class", classes=(0, 2, 3))
    outputs, targets = gathered("class", found)
    expected = np.mean([learn.roc_auc_score(targets == c, outputs[:, c]) for c in (0, 2, 3)])
    values = on_workers(Given(measured("class", ("auroc",)), found, [4, 7]))[0]
    assert values == {"auroc": pytest.approx(expected)}


def test_auroc_of_two_classes_is_that_of_the_second() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    logits, targets = torch.from_numpy(rng.normal(size=(30, 2)) * 30), torch.from_numpy(rng.integers(0, 2, 30))
    metrics = TaskMetrics("class", ("auroc",), size=2)
    metric = metrics.make()["auroc"]
    predictions, _ = metrics.compared(logits, targets)
    metric.update(predictions, targets)
    assert float(metric.compute()) == pytest.approx(learn.roc_auc_score(targets.numpy(), predictions[:, 1].numpy()))


def test_auroc_of_one_class_is_null_where_it_is_not_monitored_and_a_message_where_it_is() -> None:
    found = sequences("class", classes=(1,))
    beside = Given(measured("class", ("accuracy", "auroc")), found, [11])
    assert math.isnan(values_of(beside, Communicator())["auroc"])
    monitored = Given(measured("class", ("accuracy", "auroc"), "auroc"), found, [8, 3])
    with pytest.raises(DataError, match=r"monitored metric auroc is not defined on the validation split"):
        on_workers(monitored)


def test_outputs_that_are_not_finite_give_nan_and_no_message_about_the_data() -> None:
    class Diverged(Echo):
        def forward(self, x: Tensor, state: Any) -> tuple[Tensor, None]:
            return x * float("inf"), None

    task = Given(measured("class", ("auroc", "accuracy")), sequences("class"), [11])
    assert math.isnan(evaluate(Diverged(), task, Communicator(), "validation", CPU)["auroc"])


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("world", [1, 2])
def test_an_empty_split_is_named(split: str, world: int) -> None:
    task = Given(measured("class", ()), [], [0] * world)
    with pytest.raises(DataError, match=rf"the {split} split is empty: give it at least one sequence"):
        together(world, lambda everyone: values_of(task, everyone, split))


@pytest.mark.parametrize("place", ["input", "target"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_number_that_is_not_finite_is_named_by_every_worker(split: str, place: str) -> None:
    found = sequences("value")
    output, target = found[9]
    (output if place == "input" else target)[0] = float("nan")
    task = Given(measured("value", ()), found, [8, 3])
    said: list[str] = []

    def work(everyone: Communicator) -> None:
        try:
            values_of(task, everyone, split)
        except DataError as error:
            said.append(str(error))

    together(2, work)
    assert len(said) == 2
    assert said[0] == said[1]
    count = {"input": 2, "target": 1}[place]
    assert said[0].startswith(f"the {split} split has {count} inputs or targets that are not finite (NaN or infinite)")


OWN = """
import torch
from torchmetrics import Metric

class Largest(Metric):
    higher_is_better = False
    full_state_update = False
    def __init__(self):
        super().__init__()
        self.add_state("largest", torch.zeros(()), dist_reduce_fx="max")
    def update(self, predictions, targets):
        self.largest = torch.maximum(self.largest, (predictions - targets).abs().max().float())
    def compute(self):
        return self.largest

class Undirected(Largest):
    higher_is_better = None

class Many(Largest):
    def compute(self):
        return self.largest.repeat(3)

class Needy(Largest):
    def __init__(self, size):
        super().__init__()

class Listed(Largest):
    def __init__(self):
        super().__init__()
        self.add_state("seen", [], dist_reduce_fx=None)

class Layer(torch.nn.Module):
    pass
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(OWN)
    return f"{tmp_path}/mine.py"


@pytest.mark.parametrize("world", SHARES)
def test_a_metric_of_ones_own(world: int, own: str) -> None:
    found = sequences("value")
    metrics = measured("value", ("mae", f"{own}:Largest"), "Largest")
    task = Given(metrics, found, SHARES[world])
    assert (task.metric, task.higher_is_better) == ("Largest", False)
    outputs, targets = gathered("value", found)
    assert on_workers(task)[0]["Largest"] == pytest.approx(np.abs(outputs - targets).max(), rel=1e-6)


MISTAKES = {
    "Layer": "is no class derived from torchmetrics.Metric",
    "Needy": "Needy() cannot be made (TypeError: ",
    "Nobody": "has no Nobody",
    "Listed": 'its state seen is a list, which workers can only join: type add_state("seen", [], dist_reduce_fx="cat")',
    "Undirected": "task.monitor=Undirected: its class does not say which values are better: set higher_is_better",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_metric_of_ones_own_that_cannot_be_used(name: str, own: str) -> None:
    with pytest.raises(DataError) as caught:
        measured("value", (f"{own}:{name}",))
    assert MISTAKES[name] in str(caught.value)
    assert str(caught.value).startswith("task.m")


def test_a_metric_of_several_numbers_is_refused(own: str) -> None:
    with pytest.raises(DataError, match=r"the metric Many gives a tensor of shape \(3,\), not one number"):
        values_of(Given(measured("value", (f"{own}:Many",)), sequences("value"), [11]), Communicator())


def test_a_metric_without_direction_may_stand_beside_another(own: str) -> None:
    assert measured("value", ("mae", f"{own}:Undirected")).names == ["mae", "Undirected"]


@pytest.mark.parametrize(
    ("kind", "listed", "monitor", "text"),
    [
        ("class", ("mae",), None, "mae does not fit targets of the kind class: list some of accuracy, balanced_acc"),
        ("labels", ("balanced_accuracy",), None, "does not fit targets of the kind labels: list some of macro_f1"),
        ("step_value", ("mase",), None, "mase does not fit targets of the kind step_value: list some of rmse, mae"),
        ("forecast", ("smape",), None, "there is no metric smape: list some of mase, mae, rmse, or PATH.py:CLASS"),
        ("value", ("mae", "mae"), None, "task.metrics=[mae, mae] has mae twice: list it once"),
        ("value", ("mae",), "rmse", "task.monitor=rmse is none of task.metrics=[mae]: type one of mae"),
        ("class", (), "auroc", "task.monitor=auroc is none of task.metrics=[accuracy]: type one of accuracy"),
    ],
)
def test_metrics_that_do_not_fit(kind: Targets, listed: tuple[str, ...], monitor: str | None, text: str) -> None:
    with pytest.raises(DataError) as caught:
        measured(kind, listed, monitor)
    assert text in str(caught.value)


@pytest.mark.parametrize("kind", FITTING)
def test_the_first_metric_is_monitored_in_its_direction(kind: Targets) -> None:
    for name in FITTING[kind]:
        metrics = measured(kind, (name,))
        assert metrics.monitored == name
        assert metrics.higher_is_better == (name not in ("mae", "rmse", "mase"))
        assert metrics.make()[name].higher_is_better == metrics.higher_is_better
    assert measured(kind, ()).monitored == FITTING[kind][0]


def test_mase_of_the_naive_forecast_is_one() -> None:
    series = [torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, 5.0]]), torch.tensor([[0.0, 0.0], [6.0, 1.0]])]
    scale = naive_scale(series)
    assert scale.tolist() == [3.0, 2.0]
    metrics = TaskMetrics("forecast", size=2, scale=scale)
    metric = metrics.make()["mase"]
    for each in series:
        metric.update(*metrics.compared(each[:-1], each[1:]))
    assert float(metric.compute()) == pytest.approx(1.0)


def test_mase_of_a_constant_channel_is_refused() -> None:
    with pytest.raises(DataError, match=r"mase divides by the mean change .* channel 1 never changes there: list mae"):
        naive_scale([torch.tensor([[1.0, 4.0], [2.0, 4.0]])])


def test_a_forecasts_steps_are_rows_of_channels() -> None:
    metrics = measured("forecast", ())
    outputs, targets = torch.arange(12.0).reshape(2, 6), torch.zeros(2, HORIZON, 2)
    predictions, expected = metrics.compared(outputs, targets)
    assert predictions.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert expected.shape == predictions.shape


def test_torchmetrics_is_not_imported_before_a_task_is_evaluated() -> None:
    code = (
        "import sys, fptt_dist, fptt_dist.tasks.metrics as m, fptt_dist.training.trainer\n"
        "assert m.TaskMetrics('class', size=3).higher_is_better\n"
        "assert 'torchmetrics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
