"""FPTT with a recurrent layer of your own: anything that is `(x, state) → (y, state)` will do.

Type:

    python examples/own_cell.py              FPTT
    python examples/own_cell.py --alpha 0    the same windows without the regularizer

or train the layer like any of the package's, on its tasks and with its algorithms, several workers and resumption:

    fptt-dist train add_task task.length=20 model.layer=examples/own_cell.py:GatedCell model.hidden=64

The layer below is a gated one of a few lines. In the first step it is shown one of eight symbols, then 99 steps of
noise; at the end of each window it is asked which symbol it was. The graph is cut at every window, so that the symbol
reaches a later window only through the state: the layer learns to hold it because every window asks.

It prints the accuracy on new sequences every 50 batches and a last line with the accuracy of W̄; guessing has 12.5 %.

Effect of the regularizer here: none that is needed. `--alpha 0` learns the same; what counts are the K updates.
"""

import argparse

import torch
from torch import Tensor, nn

from fptt_dist import FPTT, window_slices

STEPS, WINDOWS, BATCH, SYMBOLS = 100, 20, 64, 8


class GatedCell(nn.Module):
    """h' = (1 − z) h + z tanh(U x), with the gate z = σ(W x + V h).

    Replace it by yours. Two rules: `state=None` starts a sequence, and the state that comes out is all that the next
    window is to know (a tensor here; a tuple or a dictionary of tensors needs `detach()` on each).
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.recurrent = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden, bias=False)
        self.candidate = nn.Linear(inputs, hidden)
        nn.init.constant_(self.gate.bias, -2.0)  # start by remembering: z ≈ 0.1

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reads x (S, B, inputs) from the state (B, hidden) on; gives y (S, B, hidden) and the state after it."""
        state = x.new_zeros(x.shape[1], self.recurrent.in_features) if state is None else state
        outputs = []
        for gate, candidate in zip(self.gate(x), torch.tanh(self.candidate(x)), strict=True):
            z = torch.sigmoid(gate + self.recurrent(state))
            state = torch.lerp(state, candidate, z)
            outputs.append(state)
        return torch.stack(outputs), state


def recall(sequences: int) -> tuple[Tensor, Tensor]:
    """A symbol in the first step, then noise (T, B, symbols), and which one it was (B,)."""
    symbols = torch.randint(SYMBOLS, (sequences,))
    x = torch.randn(STEPS, sequences, SYMBOLS)
    x[0] = 5.0 * nn.functional.one_hot(symbols, SYMBOLS)
    return x, symbols


def main() -> None:
    """Train, and print the accuracy."""
    parser = argparse.ArgumentParser(description="FPTT with a layer of your own")
    parser.add_argument("--steps", type=int, default=150, help="batches (default: 150)")
    parser.add_argument("--alpha", type=float, default=0.5, help="strength of the regularizer; 0: none (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    cell, readout = GatedCell(SYMBOLS, 64), nn.Linear(64, SYMBOLS)
    adam = torch.optim.Adam([*cell.parameters(), *readout.parameters()], lr=5e-3)
    optimizer = FPTT(adam, alpha=options.alpha, metric="preconditioned", max_norm=1.0)
    test_x, test_y = recall(1000)

    @torch.no_grad()
    def accuracy() -> float:
        """Share of the test sequences whose symbol is named right at the end, with W̄."""
        with optimizer.at_center():
            return (readout(cell(test_x)[1]).argmax(-1) == test_y).double().mean().item()

    for batch in range(1, options.steps + 1):
        x, y = recall(BATCH)
        state = None
        for part in window_slices(STEPS, WINDOWS):
            _, state = cell(x[part], state)
            nn.functional.cross_entropy(readout(state), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            state = state.detach()
        if batch % 50 == 0:
            print(f"batch {batch}: accuracy {accuracy():.1%}", flush=True)

    print(f"accuracy {accuracy():.1%} after {STEPS} steps, guessing: {1 / SYMBOLS:.1%}")


if __name__ == "__main__":
    main()
