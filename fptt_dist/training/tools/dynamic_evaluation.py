"""Dynamic evaluation of a language model (Krause et al. 2018, "Dynamic evaluation of neural sequence models").

The model keeps learning from the text that it is evaluated on. A segment is scored before anything is learned from it;
then, with g the gradient of its mean loss and θ₀ the trained weights,

    θ ← θ − η g / (r + ε) + min(1, δ r / mean r) · (θ₀ − θ)        r = √(mean of g² over the training text)

η and δ are the best of a small grid on the beginning of the validation text, η = δ = 0 (the ordinary evaluation of
one stream) among them. The test text is read with the chosen values and with 0, and decides nothing.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fptt_dist.algorithm import detach
from fptt_dist.config import ConfigError, LanguageTask
from fptt_dist.tasks import Batch, Language, Split
from fptt_dist.training.saved_run import open_run
from fptt_dist.training.setup.factory import exit_refused

RATES = (5e-4, 1e-3, 2e-3)  # η
DECAYS = (2e-3, 2e-2)  # δ
EPSILON = 1e-3
SEGMENT = {"word": 5, "character": 20}  # steps
STREAMS = 100  # of the training text, side by side
CHOSEN_ON = 10_000  # words or characters of the validation text


class DynamicEvaluation:
    """A network that learns as it is evaluated.

    Args:
        model: `(ids (S, B), state) → (logits (S, B, V), state)`; it is changed, and is not trained on afterwards.
        task: gives the text, the loss's targets and the metric.
        device: where the model is.
        segment: steps between updates.
    """

    def __init__(self, model: nn.Module, task: Language, device: torch.device, segment: int) -> None:
        self.model = model.eval()
        for module in model.modules():
            if isinstance(module, nn.RNNBase):  # cuDNN differentiates in training mode only
                module.train()
                module.dropout = 0.0
        self.task = task
        self.device = device
        self.segment = segment
        self._parameters: list[Tensor] = list(model.parameters())
        self._trained = [p.detach().clone() for p in self._parameters]
        self._scale = self._root_mean_square()
        mean = torch.stack([r.mean() for r in self._scale]).mean()
        self._relative = torch._foreach_div(self._scale, mean)

    def __call__(self, split: Split, rate: float, decay: float, *, most: int | None = None) -> float:
        """Return the metric of `split`, read as one stream, starting from the trained weights.

        Args:
            split: "validation" or "test".
            rate: η ≥ 0.
            decay: δ ≥ 0.
            most: steps to read; None: all.
        """
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._trained)
        total, items, steps = 0.0, 0, 0
        for batch, output in self._segments(split, streams=1):
            if most is not None and steps >= most:
                break
            value, number = self.task.score(output.detach(), batch)
            total, items, steps = total + float(value), items + number, steps + len(batch.inputs)
            if rate > 0.0:
                self._learn(self._gradients(output, batch), rate, decay)
        return self.task.value(total / items)

    def choose(self) -> tuple[float, float]:
        """Return the η and δ that are best on the beginning of the validation text."""
        grid = [(0.0, 0.0), *((rate, decay) for rate in RATES for decay in DECAYS)]
        values = [self("validation", rate, decay, most=CHOSEN_ON) for rate, decay in grid]
        # A perplexity, or bits: lower is better.
        return min(zip(values, grid, strict=True), key=lambda each: math.inf if math.isnan(each[0]) else each[0])[1]

    def _segments(
        self, split: Literal["train", "validation", "test"], *, streams: int
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each segment of a text with the network's outputs, whose graph begins with the segment."""
        state = None
        for batch in self.task.chunks(split, streams=streams, steps=self.segment):
            batch = batch.to(self.device)
            output, state = self.model(batch.inputs, detach(state))
            yield batch, output

    def _gradients(self, output: Tensor, batch: Batch) -> list[Tensor]:
        loss = nn.functional.cross_entropy(output.flatten(0, 1), batch.targets.flatten())
        return list(torch.autograd.grad(loss, self._parameters))

    def _root_mean_square(self) -> list[Tensor]:
        """Return r of each parameter, over the training text."""
        squares, number = [torch.zeros_like(p) for p in self._parameters], 0
        for batch, output in self._segments("train", streams=STREAMS):
            gradients = self._gradients(output, batch)
            torch._foreach_addcmul_(squares, gradients, gradients)
            number += 1
        return [(square / number).sqrt_() for square in squares]

    @torch.no_grad()
    def _learn(self, gradients: list[Tensor], rate: float, decay: float) -> None:
        away = torch._foreach_sub(self._trained, self._parameters)
        rates = torch._foreach_mul(self._relative, decay)
        torch._foreach_clamp_max_(rates, 1.0)
        torch._foreach_addcdiv_(self._parameters, gradients, torch._foreach_add(self._scale, EPSILON), value=-rate)
        torch._foreach_addcmul_(self._parameters, rates, away)


def evaluate_dynamically(path: Path, which: str = "best", *, trust_code: bool = False) -> dict[str, float]:
    """Return the metric of a run's checkpoint with dynamic evaluation, and that of the same stream without.

    Args:
        path: the run's folder.
        which: "best" or "latest".
        trust_code: see `open_run`.

    Returns:
        "validation", "test", "static_validation", "static_test", "rate" (η) and "decay" (δ).

    Raises:
        ConfigError: no run there, no such checkpoint, or a run that is not of a language model.
    """
    run = open_run(path, which, trust_code=trust_code, with_task=True)
    task, config = run.task, run.config
    if not isinstance(task, Language):
        raise ConfigError(
            f"{path}: dynamic evaluation is for runs with task.name=language, this one has "
            f"task.name={config.task.name}: leave --dynamic out"
        )
    assert isinstance(config.task, LanguageTask)
    with exit_refused(config):
        dynamic = DynamicEvaluation(run.network, task, run.device, SEGMENT[config.task.token_level])
        rate, decay = dynamic.choose()
        return {
            "validation": dynamic("validation", rate, decay),
            "test": dynamic("test", rate, decay),
            "static_validation": dynamic("validation", 0.0, 0.0),
            "static_test": dynamic("test", 0.0, 0.0),
            "rate": rate,
            "decay": decay,
        }
