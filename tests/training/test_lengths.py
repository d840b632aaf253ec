"""Sequences of different lengths: what lies behind a sequence's end counts for nothing, whatever it is."""

import copy
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fptt_dist.algorithm import FPTT, SCHEMES, SequenceLoss, TerminalLoss
from fptt_dist.algorithm.diagnostics import NORMS
from fptt_dist.algorithm.losses import MultiLabelLoss, RegressionLoss, StepRegressionLoss, WindowLoss
from fptt_dist.algorithm.target_estimates import ClassMeanEstimate, UniformEstimate
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.parallel import Engine, GradientSync, Replicated
from fptt_dist.tasks import Adding, Batch, rank_slice
from fptt_dist.training.evaluation import evaluate
from fptt_dist.training.window_loop import WindowLoop
from tests.parallel.replicas import Replica, together
from tests.parallel.toys import consensus, single_worker

INPUTS, OUTPUTS = 2, 3
LENGTHS = (7, 3, 12, 5, 1, 10)
SIZE, LONGEST, WINDOW = len(LENGTHS), max(LENGTHS), 3

Make = Callable[[], WindowLoss]
LOSSES: dict[str, tuple[Make, bool]] = {  # and whether there is a target per step
    "class": (lambda: TerminalLoss(UniformEstimate(OUTPUTS)), False),
    "class at all steps": (lambda: TerminalLoss(UniformEstimate(OUTPUTS), loss_steps="all"), False),
    "value": (RegressionLoss, False),
    "labels": (MultiLabelLoss, False),
    "class per step": (SequenceLoss, True),
    "value per step": (StepRegressionLoss, True),
}


class Unequal(Adding):
    """A task whose loss is given, and whose batches come from the tests."""

    lengths_differ = True

    def __init__(self, loss: WindowLoss) -> None:
        super().__init__(length=LONGEST, examples=20, seed=0)
        self.loss = loss


def targets(kind: str, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """The targets of each sequence: of all of it, or (T_b, …) of its steps."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for length in lengths:
        shape = (length,) if LOSSES[kind][1] else ()
        if kind.startswith("class"):
            found.append(torch.randint(0, OUTPUTS, shape, generator=generator))
        elif kind == "labels":
            found.append(torch.randint(0, 2, (OUTPUTS,), generator=generator).float())
        else:
            found.append(torch.rand((*shape, OUTPUTS), generator=generator))
    return found


def inputs(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(length, INPUTS, generator=generator) for length in lengths]


def padded(kind: str, *, steps: int = LONGEST, filler: float = torch.nan, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """The sequences side by side, with `filler` behind their ends."""
    x = torch.full((steps, len(lengths), INPUTS), filler)
    per_step = LOSSES[kind][1]
    own = targets(kind, lengths)
    y = torch.zeros((steps, len(lengths), *own[0].shape[1:]), dtype=own[0].dtype) if per_step else torch.stack(own)
    for b, sequence in enumerate(inputs(lengths)):
        x[: len(sequence), b] = sequence
        if per_step:
            y[: len(sequence), b] = own[b]
    return Batch(x, y, per_step_targets=per_step, lengths=torch.tensor(lengths)).without_padding()


def loop(kind: str, scheme: str, engine: Engine | None = None, **options: Any) -> WindowLoop:
    net = copy.deepcopy(network())  # as threads share the random stream
    engine = engine or single_worker()
    engine.prepare(net)
    optimizer = FPTT(torch.optim.Adam(net.parameters(), lr=0.01), alpha=0.5 * SCHEMES[scheme].has_regularizer)
    engine.attach(optimizer)
    task = Unequal(LOSSES[kind][0]())
    options = {"window_length": WINDOW, **options}
    return WindowLoop(net, task, engine, optimizer, SCHEMES[scheme], windows=LONGEST // WINDOW, **options)


@cache
def network() -> Network:
    """A network of the same weights always."""
    torch.manual_seed(0)
    return Network(recurrent_layer("gru", INPUTS, 4), 4, OUTPUTS, output_steps="all")


def weights(trained: WindowLoop) -> list[Tensor]:
    return [p.detach().clone() for p in trained.model.parameters()]


def own_loss(kind: str, output: Tensor, target: Tensor, start: int, length: int) -> tuple[Tensor, int]:
    """The sum of the terms of one sequence's part that ends where `output` does (its own steps alone), and of how many.

    Written down from the definitions, for a sequence alone, without a window or a mask.
    """
    read = (start + len(output)) / length
    last = output[-1]
    if kind == "class":
        q = read * functional.one_hot(target, OUTPUTS) + (1 - read) / OUTPUTS
        return -(q * last.log_softmax(-1)).sum(), 1
    if kind == "class at all steps":
        value = torch.zeros(())
        for i, each in enumerate(output):
            beta = (start + i + 1) / length
            q = beta * functional.one_hot(target, OUTPUTS) + (1 - beta) / OUTPUTS
            value = value - (q * each.log_softmax(-1)).sum()
        return value / len(output), 1
    if kind == "value":
        return read * (last - target).square().mean(), 1
    if kind == "labels":
        p = last.sigmoid()
        return -read * (target * p.log() + (1 - target) * (1 - p).log()).mean(), 1
    part = target[start : start + len(output)]
    if kind == "class per step":
        return -output.log_softmax(-1).gather(1, part.unsqueeze(1)).sum(), len(output)
    return (output - part).square().mean(1).sum(), len(output)


def by_hand(kind: str, scheme: str, net: Network) -> list[list[Tensor]]:
    """The gradients of each update at the same weights, from each sequence run alone."""
    once = scheme in ("bptt", "bptt_aux")  # one graph
    size = LONGEST if scheme == "bptt" else WINDOW
    starts = range(0, LONGEST, size)
    sums, counts = [torch.zeros(()) for _ in starts], [0 for _ in starts]
    accumulated, all_terms = torch.zeros(()), 0
    for sequence, target in zip(inputs(), targets(kind), strict=True):
        state, length = None, len(sequence)
        for k, start in enumerate(starts):
            part = sequence[start : start + size]
            if not len(part):
                continue
            output, state = net(part.unsqueeze(1), state)
            value, terms = own_loss(kind, output.squeeze(1), target, start, length)
            sums[k], counts[k] = sums[k] + value, counts[k] + terms
            if LOSSES[kind][1] or start + len(part) == length:
                accumulated, all_terms = accumulated + value, all_terms + terms
            if not once:
                state = state.detach()
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    if scheme == "tbptt_accumulated":
        means = [accumulated / all_terms]
    elif once:
        means = [torch.stack(means).mean()]
    return [list(torch.autograd.grad(mean, list(net.parameters()), retain_graph=True)) for mean in means]


@pytest.mark.parametrize("scheme", ["tbptt", "tbptt_accumulated", "bptt_aux", "bptt"])
@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradients_are_those_of_the_sequences_alone(
    kind: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parts in (1, 3):
        trained = loop(kind, scheme, micro_batches=parts, **({"window_length": None} if scheme == "bptt" else {}))
        assert isinstance(trained.model, Network)
        expected = by_hand(kind, scheme, trained.model)
        seen: list[list[Tensor]] = []

        def step(closure: Any = None, *, measure: Any = None, of: WindowLoop = trained, to: Any = seen) -> dict:
            to.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in of.model.parameters()])
            of.optimizer.zero_grad()
            return {}

        monkeypatch.setattr(trained.engine, "step", step)
        trained.run(padded(kind))
        assert len(seen) == len(expected)
        for found, right in zip(seen, expected, strict=True):
            for one, other in zip(found, right, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_padding_moves_nothing(kind: str) -> None:
    """Two steps or five windows more, zeros or NaN: the same weights, bit for bit."""
    plain = loop(kind, "fptt")
    result, _ = plain.run(padded(kind, filler=0.0))
    assert result.updates == 4
    for steps, filler in ((LONGEST, torch.nan), (LONGEST + 15, torch.inf)):
        other = loop(kind, "fptt")
        found, _ = other.run(padded(kind, steps=steps, filler=filler))
        assert all(map(torch.equal, weights(plain), weights(other)))
        torch.testing.assert_close(found.window_losses[:4], result.window_losses)
        assert not found.window_losses[4:].any()


@pytest.mark.parametrize("scheme", ["fptt", "tbptt_accumulated", "bptt_aux"])
@pytest.mark.parametrize("kind", LOSSES)
def test_equal_lengths_are_no_lengths(kind: str, scheme: str) -> None:
    same = (LONGEST,) * 4
    batch = padded(kind, lengths=same)
    plain = Batch(batch.inputs, batch.targets, per_step_targets=batch.per_step_targets)
    one, other = loop(kind, scheme), loop(kind, scheme)
    first, second = one.run(batch)[0], other.run(plain)[0]
    if scheme == "tbptt_accumulated" and not LOSSES[kind][1]:  # of the sequences that end in the window
        torch.testing.assert_close(first.window_losses[-1], second.window_losses[-1])
    else:
        torch.testing.assert_close(first.window_losses, second.window_losses)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-6)


def share(kind: str, rank: int, world: int, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """A worker's slice of the global batch."""
    batch = padded(kind, lengths=lengths).select(rank_slice(len(lengths), rank, world))
    return Batch(
        batch.inputs,
        batch.targets,
        per_step_targets=batch.per_step_targets,
        lengths=batch.lengths,
        global_lengths=torch.tensor(lengths),
    )


@pytest.mark.parametrize(("kind", "scheme"), [("class", "fptt"), ("class per step", "tbptt"), ("value", "bptt_aux")])
def test_averaged_gradients_are_those_of_one_worker(kind: str, scheme: str) -> None:
    """4 sequences and 2: one worker has no step in the last windows, and still does the same updates."""

    def work(workers: Replica) -> list[Tensor]:
        part = share(kind, workers.rank, 2, (7, 12, 5, 3))
        trained = loop(kind, scheme, Engine(workers, Replicated(), GradientSync(workers, 0.5)))
        trained.run(part)
        return weights(trained)

    alone = loop(kind, scheme)
    alone.run(padded(kind, lengths=(7, 12, 5, 3)))
    for found in together(2, work):
        torch.testing.assert_close(found, weights(alone), rtol=1e-3, atol=1e-5)


def test_a_worker_without_a_step_in_a_window_does_no_update_there() -> None:
    """W, W̄, u and Adam's state stay as they are, while the other worker trains on."""

    network()

    def work(workers: Replica) -> list[list[Tensor]]:
        engine = consensus(workers, every=100)
        trained = loop("class", "fptt", engine)
        seen: list[list[Tensor]] = []
        after = engine.after_update

        def after_update() -> None:
            after()
            state = [v for s in trained.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
            seen.append([t.detach().clone() for t in (*trained.model.parameters(), *state)])

        engine.after_update = after_update  # pyright: ignore[reportAttributeAccessIssue]
        trained.run(share("class", workers.rank, 2, (4, 6, 12, 9)))
        return seen

    short, long = together(2, work)
    assert len(short) == len(long) == 4
    changed = [[not all(map(torch.equal, a, b)) for a, b in pairwise(each)] for each in (short, long)]
    assert changed == [[True, False, False], [True, True, True]]


def test_a_worker_must_know_the_lengths_of_all() -> None:
    def work(workers: Replica) -> str:
        batch = padded("class", lengths=(4, 6))
        with pytest.raises(ValueError, match="lengths without global_lengths") as caught:
            loop("class", "fptt", Engine(workers, Replicated(), GradientSync(workers, 0.5))).run(batch)
        return str(caught.value)

    assert len(set(together(2, work))) == 1


def test_the_norms_are_those_of_the_last_update_that_is_made() -> None:
    _, expected = loop("class", "fptt").run(padded("class"), measure=True)
    _, found = loop("class", "fptt").run(padded("class", steps=LONGEST + 15), measure=True)
    assert set(found) == set(NORMS)
    assert found == expected


@pytest.mark.parametrize("windows", [2, 4, 8])
def test_q_is_that_of_the_same_relative_position(windows: int) -> None:
    """Of its own windows, whatever number the batch has: of a sequence half as long the second of four is the last."""
    estimate = ClassMeanEstimate(OUTPUTS, windows)
    loss = TerminalLoss(estimate)
    trained = loop("class", "tbptt")
    trained.task.loss = loss
    trained.run(padded("class", lengths=(12, 6)))
    labels = targets("class", (12, 6))
    counts = torch.zeros(windows, OUTPUTS, dtype=torch.float64)
    for k in range(1, 5):
        counts[-(-k * windows // 4) - 1, labels[0]] += 1
    for k in range(1, 3):
        counts[-(-k * windows // 2) - 1, labels[1]] += 1
    assert torch.equal(estimate.counts, counts)


def test_evaluation_reads_a_sequences_own_last_step() -> None:
    class Scored(Unequal):
        def evaluation_batches(self, split: Any, rank: int, world: int) -> Any:
            yield padded("value")

        def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
            assert batch.lengths is not None
            last = output[batch.lengths - 1, torch.arange(batch.size)]
            return (last - batch.targets).double().square().mean(1).sum(), batch.size

    trained = loop("value", "fptt")
    values = evaluate(trained.model, Scored(RegressionLoss()), trained.engine.everyone, "test", torch.device("cpu"))
    with torch.no_grad():
        errors = [
            (trained.model(x.unsqueeze(1), None)[0][-1, 0] - y).square().mean()
            for x, y in zip(inputs(), targets("value"), strict=True)
        ]
    assert list(values.values()) == pytest.approx([float(torch.stack(errors).mean())], rel=1e-6)
