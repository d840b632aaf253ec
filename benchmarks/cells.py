"""Time per window of every layer of the package; those that are stepped through are compiled, too.

    python -m benchmarks.cells --json results/cells.json
    python -m benchmarks.cells --device cuda        # flashrnn's LSTM and GRU too, where it can be imported

Forward and backward of one window with the state given, all layers in turns, one thread on a CPU. A table shows the
median (smallest–largest) and the ratio to the LSTM of the same size.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.algorithm import detach
from fptt_dist.models import compile_steps, hidden_of, penalty_of, recurrent_layer
from fptt_dist.models.recurrent import LAYERS

SHAPES = "28x64x64,1x64x64"  # steps × batch × hidden
INPUTS = 7
WITHOUT_FLASH = "flashrnn is not installed: pip install flashrnn (needs nvcc and g++ when it is run first)"
Window = Callable[[Tensor, Any], tuple[Tensor, Any]]


class FlashLayer(nn.Module):
    """flashrnn's LSTM or GRU with the weights of PyTorch's, one layer, float32.

    flashrnn reads W x of all steps, (B, T, gates, heads, units), R (gates, heads, units out, units in), a bias per
    gate and states (states, B, 1, heads, units). Its GRU has the gates g, r, z, n: g reads the state alone, n the input
    alone. PyTorch's order is r, z, n.

    Args:
        layer: nn.LSTM or nn.GRU.
        backend: "cuda_fused" or "cuda".
    """

    def __init__(self, layer: nn.RNNBase, backend: str) -> None:
        super().__init__()
        self.layer = layer
        self.backend = backend
        self.function = "lstm" if isinstance(layer, nn.LSTM) else "gru"
        self.flashrnn = importlib.import_module("flashrnn").flashrnn

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Run PyTorch's layer on a window."""
        inward, recurrent, b_in, b_rec = (getattr(self.layer, name) for name in self.layer._flat_weights_names)
        hidden = self.layer.hidden_size
        states = torch.stack(state) if self.function == "lstm" else state[None]  # (states, layers = 1, B, H)
        if self.function == "lstm":
            bias, gates = b_in + b_rec, recurrent.view(4, 1, hidden, hidden)
        else:
            r_in, z_in, n_in = b_in.chunk(3)
            r_rec, z_rec, n_rec = b_rec.chunk(3)
            bias = torch.cat([n_rec, r_in + r_rec, z_in + z_rec, n_in])
            gates = recurrent.view(3, 1, hidden, hidden).roll(1, 0)
        drive = functional.linear(x, inward).unflatten(-1, (-1, 1, hidden)).transpose(0, 1)
        every, last = self.flashrnn(
            drive,
            gates,
            bias.view(-1, 1, hidden),
            states=states.transpose(1, 2)[:, :, :, None],
            function=self.function,
            backend=self.backend,
            dtype="float32",
        )
        end = last[:, :, 0, 0][:, None]  # (states, 1, B, H)
        return every[0, :, :, 0].transpose(0, 1), tuple(end) if self.function == "lstm" else end[0]


class SnntorchLayer(nn.Module):
    """snntorch's recurrent LIF neurons on a linear layer, stepped through, as `LIF` is."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        neuron = importlib.import_module("snntorch").RLeaky
        self.inward = nn.Linear(INPUTS, hidden)
        self.neuron = neuron(beta=torch.full((hidden,), 0.9), learn_beta=True, threshold=0.1, linear_features=hidden)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return membranes at every step, spikes and membranes after the last."""
        spikes, membranes = self.neuron.init_rleaky() if state is None else state
        outputs = []
        for drive in self.inward(x):
            spikes, membranes = self.neuron(drive, spikes, membranes)
            outputs.append(membranes)
        return torch.stack(outputs), (spikes, membranes)


def cells(hidden: int, device: torch.device) -> dict[str, nn.Module]:
    """Return every layer by its name in the table."""
    found: dict[str, nn.Module] = {}
    for cell in LAYERS:
        plain, compiled = (_drawn(cell, hidden) for _ in range(2))
        found[cell] = plain
        if compile_steps(compiled):
            found[f"{cell}, compiled"] = compiled
    if importlib.util.find_spec("snntorch") is not None:
        found["lif, snntorch"] = SnntorchLayer(hidden)
    if device.type == "cuda":
        if importlib.util.find_spec("flashrnn") is None:
            print(WITHOUT_FLASH, file=sys.stderr)
        else:
            found["lstm, flashrnn fused"] = FlashLayer(nn.LSTM(INPUTS, hidden), "cuda_fused")
            found["lstm, flashrnn"] = FlashLayer(nn.LSTM(INPUTS, hidden), "cuda")
            found["gru, flashrnn"] = FlashLayer(nn.GRU(INPUTS, hidden), "cuda")
    return {name: cell.to(device) for name, cell in found.items()}


def _drawn(cell: Any, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return recurrent_layer(cell, INPUTS, hidden)


def beginning(cell: nn.Module, x: Tensor) -> Any:
    """Return a state as a window leaves it."""
    return detach(hidden_of((cell.layer if isinstance(cell, FlashLayer) else cell)(x[:1], None)[1]))


def difference(cell: nn.Module, name: str, others: dict[str, nn.Module], x: Tensor, state: Any) -> float | None:
    """Return the largest difference of the outputs to the layer's reference; None where it is its own."""
    if isinstance(cell, FlashLayer):
        reference: nn.Module = cell.layer
    elif name.endswith(", compiled"):
        reference = others[name.removesuffix(", compiled")]
    else:
        return None
    return (cell(x, state)[0] - reference(x, state)[0]).detach().abs().max().item()


def measure(steps: int, batch: int, hidden: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Measure one shape: for each layer the seconds of the first window and of the others."""
    torch.manual_seed(1)
    x = torch.randn(steps, batch, INPUTS, device=device)
    modules = cells(hidden, device)
    rows, runs = [], []
    for name, cell in modules.items():
        state, weights = beginning(cell, x), list(cell.parameters())

        def window(cell: nn.Module = cell, state: Any = state, weights: list[nn.Parameter] = weights) -> None:
            y, after = cell(x, state)
            penalty = penalty_of(after)
            (y.sum() if penalty is None else y.sum() + penalty).backward()
            for weight in weights:
                weight.grad = None

        row: dict[str, Any] = {"layer": name, "steps": steps, "batch": batch, "hidden": hidden, "seconds": []}
        began = time.perf_counter()
        try:
            window()
            _wait(device)
            row["first"] = time.perf_counter() - began
            row["difference"] = difference(cell, name, modules, x, state)
        except Exception as error:
            if not isinstance(cell, FlashLayer):
                raise
            row["failed"] = str(error).partition("\n")[0]
        else:
            runs.append((row, window))
        rows.append(row)
    count = 1
    while _timed(runs[0][1], count, device) * count < 0.02:  # seconds together that a clock measures well
        count *= 2
    for _ in range(repeats):
        for row, window in runs:
            row["seconds"].append(_timed(window, count, device))
    return rows


def _timed(window: Callable[[], None], count: int, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        window()
    _wait(device)
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table; the first window's seconds hold what compiling took, where nothing was cached."""
    lines = [
        "| S × B × H | layer | µs per window | ratio | first window, s | difference |",
        "|---|---|---|---|---|---|",
    ]
    middles = {
        (row["steps"], row["batch"], row["hidden"], row["layer"]): statistics.median(row["seconds"])
        for row in rows
        if row["seconds"]
    }
    for row in rows:
        shape = (row["steps"], row["batch"], row["hidden"])
        head = f"| {' × '.join(map(str, shape))} | {row['layer']} "
        if not row["seconds"]:
            lines.append(f"{head}| {row['failed']} | | | |")
            continue
        low, middle, high = (1e6 * f(row["seconds"]) for f in (min, statistics.median, max))
        differs = "" if row["difference"] is None else f"{row['difference']:.0e}"
        ratio = middles[*shape, row["layer"]] / middles[*shape, "lstm"]
        lines.append(f"{head}| {middle:,.0f} ({low:,.0f}–{high:,.0f}) | {ratio:.2f} | {row['first']:.2f} | {differs} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="steps x batch x hidden, and more after commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="written here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    rows = []
    for shape in options.shapes.split(","):
        steps, batch, hidden = map(int, shape.split("x"))
        rows += measure(steps, batch, hidden, device, options.repeats)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    hardware = {"device": place, "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"hardware": hardware, "rows": rows}, indent=1) + "\n")
    print(table(rows))
    print(f"\n{', '.join(f'{name} {value}' for name, value in hardware.items())}")


if __name__ == "__main__":
    main()
