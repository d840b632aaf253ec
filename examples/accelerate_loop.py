"""FPTT in Hugging Face Accelerate: the loop of `plain_loop.py` on one process or several.

Type:

    pip install -c constraints.txt -e '.[examples]'
    python examples/accelerate_loop.py
    torchrun --standalone --nproc-per-node 2 examples/accelerate_loop.py

Start CPU processes with torchrun: `accelerate launch --cpu --num_processes 2` starts one (accelerate 1.15).

`--batch` sequences are distributed over the processes, so that one process and two train on the same sequences. It
prints the test error of the slow weights W̄ beside that of always answering 1, and how far the processes' weights, W̄
and u = λ/α are apart: 0.

Four things to know:
- Accelerate averages the gradients over the processes at every `backward`, so K times per sequence. FPTT sees the mean,
  every process makes the same update, and W̄ and λ are equal everywhere without being sent. (The package's own
  `fptt-dist launch` can synchronize once per batch instead, which is K times less often.)
- Clip with `FPTT(max_norm=…)`, which bounds the gradient of loss + regularizer; `accelerator.clip_grad_norm_` clips the
  loss's gradient alone.
- `accelerator.prepare` wraps the optimizer: FPTT's own methods are on `optimizer.optimizer`.
- Inside `accelerator.accumulate(model)` no update is made until the gradients are synchronized, so a window would not
  get its own: keep it out of the loop over windows.

Effect of the regularizer here: little; `--alpha 0` learns as well.
"""

import argparse

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fptt_dist import FPTT, window_slices

STEPS, WINDOWS = 100, 10


class Adder(nn.Module):
    """An LSTM and its output layer; one module, so that one `prepare` serves both."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.readout = nn.LSTM(2, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The sum so far (B, 1), and the state."""
        hidden, after = self.lstm(x, state)
        return self.readout(hidden[-1]), after


def adding(sequences: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and markers (T, B, 2), and the sum of the two marked numbers (B, 1)."""
    numbers, marks = torch.rand(STEPS, sequences, generator=draw), torch.zeros(STEPS, sequences)
    first = torch.randint(STEPS // 2, (1, sequences), generator=draw)
    second = torch.randint(STEPS // 2, STEPS, (1, sequences), generator=draw)
    marks.scatter_(0, torch.cat([first, second]), 1.0)
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(0).unsqueeze(-1)


def main() -> None:
    """Train, and print the result once."""
    parser = argparse.ArgumentParser(description="FPTT in Hugging Face Accelerate, on the adding task")
    parser.add_argument("--steps", type=int, default=400, help="batches (default: 400)")
    parser.add_argument("--batch", type=int, default=64, help="sequences per batch, over all processes (default: 64)")
    parser.add_argument("--alpha", type=float, default=0.5, help="strength of the regularizer; 0: none (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(options.seed)
    model = Adder()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    fptt = FPTT(adam, alpha=options.alpha, metric="preconditioned", max_norm=1.0)
    module, optimizer = accelerator.prepare(model, fptt)

    # Every process draws the whole batch and takes its share: the batches do not depend on the number of processes.
    draw, device = torch.Generator().manual_seed(options.seed), accelerator.device
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    prediction = state = None
    for _ in range(options.steps):
        x, y = adding(options.batch, draw)
        x, y = x[:, own].to(device), y[own].to(device)
        state = None
        for k, part in enumerate(window_slices(STEPS, WINDOWS), 1):
            prediction, state = module(x[part], state)
            accelerator.backward(k / WINDOWS * (prediction - y).square().mean())
            optimizer.step()
            optimizer.zero_grad()
            state = tuple(part_of_state.detach() for part_of_state in state)

    x, y = (tensor.to(device) for tensor in adding(1000, torch.Generator().manual_seed(-1)))
    with torch.no_grad(), fptt.at_center():  # the optimizer that was prepared; optimizer.optimizer is the same
        error = (model(x)[0] - y).square().mean()
    held = torch.cat([tensor.detach().flatten() for tensors in fptt.slow_state() for tensor in tensors])
    gathered = torch.as_tensor(accelerator.gather(held))
    apart = (gathered.view(accelerator.num_processes, -1) - held).abs().max()
    accelerator.print(
        f"test error {error:.4f} on {accelerator.num_processes} process(es), {apart:.0e} apart, "
        f"always predicting 1: {(y - 1).square().mean():.4f}"
    )
    # DistributedDataParallel must be gone before its process group: else a process may be aborted as it ends.
    del module, optimizer, prediction, state
    accelerator.free_memory()
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
