"""Instantaneous losses against sums written out in numpy, float64."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fptt_dist.algorithm import RegressionLoss, SequenceLoss, TerminalLoss, sequence_windows
from fptt_dist.algorithm.target_estimates import ClassMeanEstimate, ExampleEstimate, UniformEstimate

STEPS, BATCH, CLASSES = 5, 6, 4


class FixedEstimate(UniformEstimate):
    """Q given from outside, to tell it from the uniform one."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(table.shape[-1])
        self.table = table

    def __call__(self, window: int | Tensor, labels: Tensor, examples: Tensor | None) -> Tensor:
        return self.table[window - 1]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def terminal(
    logits: NDArray[np.float64], labels: NDArray[np.int64], q: NDArray[np.float64], beta: float, divide: float = 1.0
) -> float:
    """β CE + (1 − β)(−Σ Q log P̂) at one step, averaged over the batch."""
    log_p = log_softmax(logits)
    total = 0.0
    for row, label, trusted in zip(log_p, labels, q, strict=True):
        total += -beta * row[label] - (1.0 - beta) * float((trusted * row).sum()) / divide
    return total / len(labels)


def test_sequence_loss_is_the_mean_over_steps_and_batch(random: np.random.Generator) -> None:
    logits = random.normal(size=(STEPS, BATCH, CLASSES))
    labels = random.integers(0, CLASSES, (STEPS, BATCH))
    expected = -np.mean([log_softmax(logits)[s, b, labels[s, b]] for s in range(STEPS) for b in range(BATCH)])
    window = sequence_windows(10, 2)[0]
    loss = SequenceLoss()(torch.tensor(logits), torch.tensor(labels), window)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert not SequenceLoss.terminal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_has_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    window = sequence_windows(STEPS, 1)[0]
    logits = torch.randn(STEPS, BATCH, CLASSES, dtype=dtype, requires_grad=True)
    targets = torch.full((STEPS, BATCH), -100)
    loss = SequenceLoss()(logits, targets, window)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (loss.item(), loss.dtype) == (0.0, dtype)
    assert not gradient.any()
    targets[1, 2] = 3
    loss = SequenceLoss()(logits, targets, window)
    expected = torch.nn.functional.cross_entropy(logits[1, 2], targets[1, 2])
    assert loss.item() == expected.item()
    (gradient,) = torch.autograd.grad(loss, logits)
    (alone,) = torch.autograd.grad(expected, logits)
    assert torch.equal(gradient, alone)


def test_regression_loss_reads_the_last_step_and_grows_with_the_window(
    subtests: pytest.Subtests, random: np.random.Generator
) -> None:
    for index in (1, 2, 3, 4):
        with subtests.test(index=index):
            output, target = random.normal(size=(STEPS, BATCH, 1)), random.normal(size=(BATCH, 1))
            window = sequence_windows(20, 4)[index - 1]
            loss = RegressionLoss()(torch.tensor(output), torch.tensor(target), window)
            assert loss.item() == pytest.approx(index / 4 * ((output[-1] - target) ** 2).mean(), rel=1e-12)


def test_terminal_loss_at_the_last_step(subtests: pytest.Subtests, random: np.random.Generator) -> None:
    for index, divergence in product((1, 2, 5), ("sum", "mean")):
        with subtests.test(index=index, divergence=divergence):
            logits, labels = random.normal(size=(STEPS, BATCH, CLASSES)), random.integers(0, CLASSES, BATCH)
            q = random.dirichlet(np.ones(CLASSES), size=(5, BATCH))
            loss = TerminalLoss(FixedEstimate(torch.tensor(q)), kl_reduction=divergence)  # type: ignore[arg-type]
            window = sequence_windows(25, 5)[index - 1]
            expected = terminal(logits[-1], labels, q[index - 1], index / 5, CLASSES if divergence == "mean" else 1)
            assert loss(torch.tensor(logits), torch.tensor(labels), window).item() == pytest.approx(expected, rel=1e-6)


def test_the_last_window_is_the_cross_entropy_alone(random: np.random.Generator) -> None:
    logits = torch.tensor(random.normal(size=(1, BATCH, CLASSES)), dtype=torch.float32)
    labels = torch.tensor(random.integers(0, CLASSES, BATCH))
    window = sequence_windows(9, 3)[-1]
    loss = TerminalLoss(UniformEstimate(CLASSES))(logits, labels, window)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits[0], labels).item(), rel=1e-6)


def test_one_window_is_plain_bptt_bit_for_bit(subtests: pytest.Subtests, random: np.random.Generator) -> None:
    """Loss and gradient of K = 1 are those of torch's cross-entropy at the last step."""
    for divergence, steps in product(("sum", "mean"), (1, STEPS)):
        with subtests.test(divergence=divergence, steps=steps):
            labels = torch.tensor(random.integers(0, CLASSES, BATCH))
            values = torch.tensor(random.normal(size=(steps, BATCH, CLASSES)), dtype=torch.float32)
            ours, plain = values.clone().requires_grad_(), values.clone().requires_grad_()
            terminal = TerminalLoss(UniformEstimate(CLASSES), kl_reduction=divergence)
            loss = terminal(ours, labels, sequence_windows(9, 1)[0])
            expected = torch.nn.functional.cross_entropy(plain[-1], labels)
            loss.backward()
            expected.backward()
            assert torch.equal(loss, expected)
            assert ours.grad is not None
            assert plain.grad is not None
            assert torch.equal(ours.grad, plain.grad)


def test_the_gradient_is_the_softmax_less_the_soft_target(
    subtests: pytest.Subtests, random: np.random.Generator
) -> None:
    """dℓ/dz = (P̂ Σ_c t(c) − t)/(S B), t = β onehot(y) + (1 − β) Q, or with Q/C."""
    for k, divergence, reads in product((1, 3, 4), ("sum", "mean"), ("last", "all")):
        with subtests.test(k=k, divergence=divergence, reads=reads):
            logits, labels = random.normal(size=(STEPS, BATCH, CLASSES)), random.integers(0, CLASSES, BATCH)
            q = random.dirichlet(np.ones(CLASSES), size=(4, BATCH))
            loss = TerminalLoss(FixedEstimate(torch.tensor(q)), kl_reduction=divergence, loss_steps=reads)
            output = torch.tensor(logits, requires_grad=True)
            loss(output, torch.tensor(labels), sequence_windows(4 * STEPS, 4)[k - 1]).backward()
            expected = np.zeros_like(logits)
            for s in range(STEPS) if reads == "all" else [STEPS - 1]:
                beta = ((k - 1) * STEPS + s + 1) / (4 * STEPS) if reads == "all" else k / 4
                target = (1.0 - beta) * q[k - 1] / (CLASSES if divergence == "mean" else 1)
                target[np.arange(BATCH), labels] += beta
                share = np.exp(log_softmax(logits[s])) * target.sum(-1, keepdims=True) - target
                expected[s] = share / (BATCH * (STEPS if reads == "all" else 1))
            assert output.grad is not None
            np.testing.assert_allclose(output.grad.numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reads", ["last", "all"])
def test_what_is_observed_is_the_windows_mean_probability(reads: Any, random: np.random.Generator) -> None:
    logits = random.normal(size=(STEPS, 2, CLASSES))
    estimate = ExampleEstimate(examples=2, classes=CLASSES, windows=2)
    loss = TerminalLoss(estimate, loss_steps=reads)
    ids, labels = torch.tensor([1, 0]), torch.tensor([2, 3])
    for window in sequence_windows(2 * STEPS, 2):  # the last one too, whose loss asks for no Q
        loss(torch.tensor(logits), labels, window, examples=ids)
    loss.end_epoch(lambda tensor: tensor)
    probability = np.exp(log_softmax(logits))
    expected = probability.mean(0) if reads == "all" else probability[-1]
    for k in (1, 2):
        np.testing.assert_allclose(estimate(k, labels, ids).numpy(), expected, rtol=1e-6)


def test_terminal_loss_at_every_step_weighs_each_by_its_time(random: np.random.Generator) -> None:
    logits, labels = random.normal(size=(STEPS, BATCH, CLASSES)), random.integers(0, CLASSES, BATCH)
    q = random.dirichlet(np.ones(CLASSES), size=(4, BATCH))
    window = sequence_windows(4 * STEPS, 4)[2]
    expected = np.mean(
        [terminal(logits[s], labels, q[2], (window.part.start + s + 1) / (4 * STEPS)) for s in range(STEPS)]
    )
    loss = TerminalLoss(FixedEstimate(torch.tensor(q)), loss_steps="all")
    assert loss(torch.tensor(logits), torch.tensor(labels), window).item() == pytest.approx(expected, rel=1e-6)


def test_no_gradient_flows_into_the_estimate(random: np.random.Generator) -> None:
    q = torch.tensor(random.dirichlet(np.ones(CLASSES), size=(2, BATCH)), requires_grad=True)
    logits = torch.tensor(random.normal(size=(1, BATCH, CLASSES)), requires_grad=True)
    window = sequence_windows(4, 2)[0]
    TerminalLoss(FixedEstimate(q))(logits, torch.zeros(BATCH, dtype=torch.long), window).backward()
    assert q.grad is None
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_class_mean_is_the_last_epochs_mean_by_label_and_window() -> None:
    estimate = ClassMeanEstimate(classes=3, windows=2)
    labels = torch.tensor([0, 2, 0])
    first = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    assert torch.equal(estimate(1, labels, None), torch.full((3, 3), 1 / 3))
    estimate.observe(1, labels, None, first)
    assert torch.equal(estimate(1, labels, None), torch.full((3, 3), 1 / 3)), "fixed within the epoch"
    estimate.end_epoch(lambda tensor: tensor)
    torch.testing.assert_close(
        estimate(1, torch.tensor([0, 2]), None), torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    )
    assert torch.equal(estimate(1, torch.tensor([1]), None), torch.full((1, 3), 1 / 3)), "a label never seen"
    assert torch.equal(estimate(2, torch.tensor([0]), None), torch.full((1, 3), 1 / 3)), "a window never seen"
    estimate.end_epoch(lambda tensor: tensor)
    assert torch.equal(estimate(1, torch.tensor([0]), None), torch.full((1, 3), 1 / 3)), "only the last epoch counts"


def test_class_mean_over_workers_is_the_mean_over_all_examples() -> None:
    probabilities, labels = torch.rand(10, 4, dtype=torch.float64).softmax(-1).float(), torch.randint(0, 4, (10,))
    whole = ClassMeanEstimate(4, 1)
    whole.observe(1, labels, None, probabilities)
    whole.end_epoch(lambda tensor: tensor)
    shards = [ClassMeanEstimate(4, 1) for _ in range(2)]
    shards[0].observe(1, labels[:3], None, probabilities[:3])
    shards[1].observe(1, labels[3:], None, probabilities[3:])
    sums = {t.shape: t + o for t, o in ((shards[0].sums, shards[1].sums), (shards[0].counts, shards[1].counts))}
    for shard in shards:
        shard.end_epoch(lambda tensor: sums[tensor.shape].clone())
        torch.testing.assert_close(shard.table, whole.table)


def test_example_estimate_remembers_each_example_for_the_next_epoch() -> None:
    estimate = ExampleEstimate(examples=4, classes=2, windows=3)
    ids, labels = torch.tensor([3, 1]), torch.tensor([0, 1])
    estimate.observe(2, labels, ids, torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    assert torch.equal(estimate(2, labels, ids), torch.full((2, 2), 0.5))
    estimate.end_epoch(lambda tensor: tensor)
    torch.testing.assert_close(estimate(2, labels, ids), torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    assert torch.equal(estimate(2, labels, torch.tensor([0, 2])), torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="ids"):
        estimate(2, labels, None)


@pytest.mark.parametrize("make", [lambda: ClassMeanEstimate(3, 2), lambda: ExampleEstimate(5, 3, 2)])
def test_estimates_come_back_from_their_state(make: Callable[[], ClassMeanEstimate | ExampleEstimate]) -> None:
    labels, ids = torch.tensor([0, 1, 2]), torch.tensor([0, 3, 4])
    trained, fresh = make(), make()
    trained.observe(1, labels, ids, torch.eye(3))
    trained.end_epoch(lambda tensor: tensor)
    trained.observe(2, labels, ids, torch.eye(3))
    fresh.load_state_dict({name: tensor.clone() for name, tensor in trained.state_dict().items()})
    for estimate in (trained, fresh):
        estimate.end_epoch(lambda tensor: tensor)
    assert torch.equal(trained(2, labels, ids), fresh(2, labels, ids))
    assert not torch.equal(fresh(2, labels, ids), make()(2, labels, ids))


def test_only_observed_passes_count() -> None:
    estimate = ClassMeanEstimate(2, 1)
    loss = TerminalLoss(estimate)
    window = sequence_windows(3, 1)[0]
    logits, labels = torch.tensor([[[2.0, 0.0]]]), torch.tensor([1])
    loss(logits, labels, window, observe=False)
    loss.end_epoch(lambda tensor: tensor)
    assert torch.equal(estimate(1, labels, None), torch.tensor([[0.5, 0.5]]))
    loss(logits, labels, window)
    loss.end_epoch(lambda tensor: tensor)
    p = 1.0 / (1.0 + math.exp(-2.0))
    torch.testing.assert_close(estimate(1, labels, None), torch.tensor([[p, 1.0 - p]]))


@pytest.mark.parametrize("make", [lambda: ClassMeanEstimate(3, 2), lambda: ExampleEstimate(5, 3, 2)])
def test_all_tables_move_with_the_loss(make: Callable[[], ClassMeanEstimate | ExampleEstimate]) -> None:
    loss = TerminalLoss(make())
    loss.to(torch.device("meta"))
    assert {tensor.device.type for tensor in loss.state_dict().values()} == {"meta"}
