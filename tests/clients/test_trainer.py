"""FPTT in Hugging Face's Trainer: W̄ is evaluated and saved, W is trained, and a run resumes exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments

from fptt_dist.integrations import TrainerCenter
from tests.clients.problem import BATCH, BATCHES, RATE, FPTTAdam, Plain, assert_equal, mse, network, sequences

pytestmark = [pytest.mark.clients, pytest.mark.slow]


class Model(nn.Module):
    """The network as the Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        prediction, _ = self.network(x)
        return {"loss": mse(prediction, labels), "logits": prediction}


class Sequences(Dataset):
    """Single sequences, as the Trainer collates them."""

    def __init__(self, seed: int) -> None:
        self.x, self.y = sequences(seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class InOrder(Trainer):
    """The Trainer without shuffling."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(Sequences(0))


def trainer(folder: Path, steps: int, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH * BATCHES,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # FPTT(max_norm=…) clips
        save_strategy="steps",
        save_steps=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    return InOrder(
        Model(),
        arguments,
        train_dataset=Sequences(0),
        eval_dataset=Sequences(1),
        optimizer_cls_and_kwargs=(FPTTAdam, {"lr": RATE}),
        callbacks=[TrainerCenter()],
    )


def saved(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


def errors(client: Trainer) -> list[float]:
    return [record["eval_loss"] for record in client.state.log_history if "eval_loss" in record]


def test_the_center_is_evaluated_and_saved_and_a_run_resumes_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 2 * BATCHES, eval_strategy="steps", eval_steps=BATCHES)
    whole.train()
    before_an_evaluation = saved(tmp_path / "whole" / "checkpoint-3")
    assert_equal(before_an_evaluation, Plain(1).batches(range(3)).center, "network.")
    plain = Plain(1).epochs()
    expected = [plain.validation()]
    plain.epochs()
    expected.append(plain.validation())
    assert errors(whole) == pytest.approx(expected, rel=1e-6)  # a mean of means
    assert whole.model is not None
    assert_equal(dict(whole.model.named_parameters()), plain.center, "network.")

    again = trainer(tmp_path / "again", 2 * BATCHES)
    again.evaluate()  # before there is an optimizer
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert again.model is not None
    assert_equal(dict(again.model.named_parameters()), plain.center, "network.")
    assert again.optimizer is not None
    again.optimizer.train()  # type: ignore[attr-defined]
    assert_equal(dict(again.model.named_parameters()), plain.weights, "network.")

    # In the same process, after an evaluation.
    again.evaluate()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert_equal(dict(again.model.named_parameters()), plain.center, "network.")


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    client = trainer(
        tmp_path,
        9,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the first, so that it is not the last
    )
    client.train()
    assert client.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    assert client.model is not None
    best = Plain(1).batches(range(3)).center
    assert_equal(dict(client.model.named_parameters()), best, "network.")
    assert client.optimizer is not None
    client.optimizer.train()  # type: ignore[attr-defined]  # as more training would
    assert_equal(dict(client.model.named_parameters()), best, "network.")


def test_without_the_callback_it_evaluates_the_center_too(tmp_path: Path) -> None:
    client = trainer(tmp_path, BATCHES, eval_strategy="steps", eval_steps=BATCHES)
    client.remove_callback(TrainerCenter)
    client.train()
    assert errors(client) == pytest.approx([Plain(1).epochs().validation()], rel=1e-6)
    assert_equal(saved(tmp_path / "checkpoint-3"), Plain(1).batches(range(3)).weights, "network.")


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    client = trainer(tmp_path, 1)
    client.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": RATE})
    with pytest.raises(RuntimeError, match="TrainerCenter needs an FPTT optimizer, the Trainer has SGD"):
        client.train()
