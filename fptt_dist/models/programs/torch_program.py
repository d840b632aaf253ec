"""A network as a program of torch.export, for windows of any length."""

from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch._higher_order_ops.scan import scan

from fptt_dist.models.programs.step import DYNAMIC, StepProgram, traced_by_torch, tracing

_STEPS = 3  # of the example


class _Window(nn.Module):
    """All steps of a window x (S, B, …), one after another: `(x, *state) → (y (S, B, O), *state)`."""

    def __init__(self, step: fx.GraphModule) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        def one(carried: list[Tensor], x_t: Tensor) -> tuple[list[Tensor], Tensor]:
            y, *after = self.step(x_t, *carried)
            return [each.clone() for each in after], y.clone()  # scan refuses outputs that are inputs

        after, outputs = scan(one, list(state), x)
        return (outputs, *after)


def torch_program(step: StepProgram) -> torch.export.ExportedProgram:
    """Return the program `(x, *state) → (y, *state)` for windows of any number of steps and sequences.

    Raises:
        ProgramError: torch cannot trace it.
    """
    shapes = {"x": {0: DYNAMIC, 1: DYNAMIC}, "state": tuple(step.dynamic_state)}
    example = torch.stack([step.x] * _STEPS)
    with tracing():
        return traced_by_torch(_Window(step.graph), (example, *step.state), shapes)


def save_torch_program(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write a program to a .pt2 file."""
    with tracing():
        torch.export.save(program, file)
