"""FPTT in a plain PyTorch loop: an LSTM learns to add two numbers that lie anywhere in 100 steps.

Type:

    python examples/plain_loop.py              FPTT
    python examples/plain_loop.py --alpha 0    the same loop without the regularizer

It prints the test error every 100 batches and a last line with the error of the slow weights W̄ beside that of always
answering the mean, 1 (0.1667, the variance of the sum of two numbers from [0, 1)).

Effect of the regularizer here: the K updates along each sequence do most of the work, and the loop learns with
`--alpha 0` too. Change the batch, the model and the loss for yours; the inner loop stays.
"""

import argparse

import torch
from torch import Tensor

from fptt_dist import FPTT, window_slices

STEPS, WINDOWS, BATCH = 100, 10, 64

parser = argparse.ArgumentParser(description="FPTT in a plain PyTorch loop, on the adding task")
parser.add_argument("--steps", type=int, default=400, help="batches (default: 400)")
parser.add_argument("--alpha", type=float, default=0.5, help="strength of the regularizer; 0: none (default: 0.5)")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()


def adding(sequences: int) -> tuple[Tensor, Tensor]:
    """Numbers and markers (T, B, 2), and the sum of the two marked numbers (B, 1)."""
    numbers, marks = torch.rand(STEPS, sequences), torch.zeros(STEPS, sequences)
    first = torch.randint(STEPS // 2, (1, sequences))
    second = torch.randint(STEPS // 2, STEPS, (1, sequences))
    marks.scatter_(0, torch.cat([first, second]), 1.0)
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(0).unsqueeze(-1)


torch.manual_seed(options.seed)
lstm, readout = torch.nn.LSTM(2, 64), torch.nn.Linear(64, 1)
adam = torch.optim.Adam([*lstm.parameters(), *readout.parameters()], lr=1e-2)
optimizer = FPTT(adam, alpha=options.alpha, metric="preconditioned", max_norm=1.0)
test_x, test_y = adding(1000)


@torch.no_grad()
def test_error() -> float:
    """Mean squared error of whole sequences, with W̄."""
    with optimizer.at_center():
        return (readout(lstm(test_x)[0][-1]) - test_y).square().mean().item()


for batch in range(1, options.steps + 1):
    x, y = adding(BATCH)
    state = None
    for k, part in enumerate(window_slices(STEPS, WINDOWS), 1):
        hidden, state = lstm(x[part], state)
        loss = k / WINDOWS * (readout(hidden[-1]) - y).square().mean()  # early windows cannot know the answer: less
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state = tuple(part_of_state.detach() for part_of_state in state)
    if batch % 100 == 0:
        print(f"batch {batch}: test error {test_error():.4f}", flush=True)

print(f"test error {test_error():.4f}, always predicting 1: {(test_y - 1).square().mean():.4f}")
