"""FPTT in Accelerate, skorch and ignite: the numbers of a plain loop, W̄ evaluated and saved."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from ignite.contrib.engines import create_supervised_tbptt_trainer
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fptt_dist import FPTT, window_slices
from tests.clients.problem import (
    ALPHA,
    BATCH,
    BATCHES,
    RATE,
    STEPS,
    WINDOWS,
    FPTTAdam,
    Network,
    Plain,
    assert_equal,
    mse,
    network,
    sequences,
)

pytestmark = [pytest.mark.clients, pytest.mark.slow]


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*sequences()), batch_size=BATCH)


def test_accelerate_evaluates_and_saves_the_center_and_resumes_exactly(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    made, optimizer = accelerator.prepare(model, FPTTAdam(model.parameters(), lr=RATE))

    def epoch() -> None:
        optimizer.train()
        for x, y in loader():
            state = None
            for part in window_slices(STEPS, WINDOWS):
                prediction, after = made(x[:, part], state)
                optimizer.zero_grad()
                accelerator.backward(mse(prediction, y[:, part]))
                optimizer.step()
                state = after.detach()
        optimizer.eval()

    plain = Plain().epochs()
    epoch()
    x, y = sequences(seed=1)
    with torch.no_grad():
        assert mse(made(x)[0], y).item() == plain.validation()
    accelerator.save_state(str(tmp_path))
    assert_equal(load_file(tmp_path / "model.safetensors"), plain.center)
    plain.epochs()
    for again in (False, True):
        if again:
            accelerator.load_state(str(tmp_path))
        epoch()
        assert_equal(dict(model.named_parameters()), plain.center)
        optimizer.train()
        assert_equal(dict(model.named_parameters()), plain.weights)


class WindowedRegressor(NeuralNetRegressor):
    """skorch with an update per window, validated and predicting with W̄."""

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        x, y = batch
        state, losses, predictions = None, [], []
        self._set_training(True)
        for part in window_slices(x.shape[1], WINDOWS):
            self._zero_grad_optimizer()
            prediction, after = self.module_(x[:, part], state)
            losses.append(self.get_loss(prediction, y[:, part]))
            losses[-1].backward()
            self.optimizer_.step()
            predictions.append(prediction.detach())
            state = after.detach()
        return {"loss": torch.stack(losses).detach().mean(), "y_pred": torch.cat(predictions, dim=1)}

    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        optimizer: Any = self.optimizer_
        with optimizer.at_center():
            return super().evaluation_step(batch, training)


def regressor(**options: Any) -> WindowedRegressor:
    return WindowedRegressor(
        Network,
        **{
            "optimizer": FPTT.over(torch.optim.Adam, alpha=ALPHA),
            "lr": RATE,
            "batch_size": BATCH,
            "max_epochs": 1,
            "train_split": None,
            "verbose": 0,
            "device": "cpu",
            **options,
        },
    )


def test_skorch_trains_predicts_clones_and_pickles(tmp_path: Path) -> None:
    x, y = (tensor.numpy() for tensor in sequences())
    plain = Plain().epochs()
    net: Any = clone(regressor())
    torch.manual_seed(0)
    net.fit(x, y)
    assert_equal(dict(net.module_.named_parameters()), plain.weights)
    validation = torch.from_numpy(net.predict(sequences(seed=1)[0].numpy()))
    assert mse(validation, sequences(seed=1)[1]).item() == plain.validation()

    other = pickle.loads(pickle.dumps(net))
    other.partial_fit(x, y)
    assert_equal(dict(other.module_.named_parameters()), plain.epochs().weights)

    net.save_params(f_params=tmp_path / "model.pt", f_optimizer=tmp_path / "optimizer.pt")
    third = regressor().initialize()
    third.load_params(f_params=tmp_path / "model.pt", f_optimizer=tmp_path / "optimizer.pt")
    third.partial_fit(x, y)
    assert_equal(dict(third.module_.named_parameters()), plain.weights)


def test_skorch_searches_the_bases_arguments() -> None:
    x, y = (tensor.numpy().reshape(BATCH * BATCHES, -1) for tensor in sequences())

    class Flat(NeuralNetRegressor):
        """One update per batch; scikit-learn's scores are of matrices."""

        def infer(self, x: Tensor, **fit_params: Any) -> Tensor:
            return self.module_(x.view(-1, STEPS, 2))[0].flatten(1)

    net = Flat(Network, optimizer=FPTTAdam, train_split=None, verbose=0, max_epochs=1, batch_size=BATCH)
    search = GridSearchCV(net, {"lr": [1e-6, RATE], "optimizer__eps": [1e-8]}, cv=2, scoring="neg_mean_squared_error")
    search.fit(x, y)
    assert search.best_params_ == {"lr": RATE, "optimizer__eps": 1e-8}


def test_ignite_trains_windows_evaluates_and_saves_the_center_and_resumes_exactly(tmp_path: Path) -> None:
    def program(epochs: int, start: Path | None = None) -> tuple[Network, FPTT, list[float]]:
        model, seen = network(), []
        optimizer: FPTT = FPTTAdam(model.parameters(), lr=RATE)
        trainer = create_supervised_tbptt_trainer(model, optimizer, mse, STEPS // WINDOWS, dim=1)  # type: ignore[arg-type]

        def evaluate(_: Engine, batch: list[Tensor]) -> None:
            x, y = batch
            with torch.no_grad():
                seen.append(mse(model(x)[0], y).item())

        evaluator = Engine(evaluate)
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda _: optimizer.train())
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: optimizer.eval())
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run([list(sequences(seed=1))]))
        held: dict[str, Any] = {"model": model, "optimizer": optimizer, "trainer": trainer}
        saver = DiskSaver(str(tmp_path), require_empty=False)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, Checkpoint(held, saver, n_saved=None))
        if start is not None:
            Checkpoint.load_objects(held, str(start))
        trainer.run(loader(), max_epochs=epochs)
        return model, optimizer, seen

    model, optimizer, seen = program(2)
    plain = Plain().epochs()
    expected = [plain.validation()]
    first = tmp_path / f"checkpoint_{BATCHES}.pt"
    assert_equal(torch.load(first, weights_only=True)["model"], plain.center)
    expected.append(plain.epochs().validation())
    assert seen == expected
    assert_equal(dict(model.named_parameters()), plain.center)
    optimizer.train()
    assert_equal(dict(model.named_parameters()), plain.weights)

    model, optimizer, seen = program(2, start=first)
    assert seen == expected[1:]
    optimizer.train()
    assert_equal(dict(model.named_parameters()), plain.weights)
