"""Bytes per second of the update beside a copy on the same device: the gap to 100 % is what is left to gain.

    python benchmarks/update.py --json results/update.json
    python benchmarks/update.py --device cuda

An update has to read W, g, W̄, u and the moments and to write all but g again: 44 bytes per parameter with Adam (36 with
momentum, 28 with SGD); with a clip it has to read W, g, W̄ and u once more before, for the norm: 16 bytes. Plain, fused
and copy take turns; a value is the median over the turns (smallest–largest). On a CPU: one thread.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fptt_dist.algorithm import FPTT
from fptt_dist.training.run_dir import versions

SIZES = {"67K": (128, 1), "1M": (480, 1), "7M": (760, 2), "20M": (1290, 2), "100M": (2890, 2)}  # hidden, layers
BASES: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any], int]] = {
    "sgd": (torch.optim.SGD, {}, 28),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, 36),
    "adam": (torch.optim.Adam, {}, 44),
    "adamw": (torch.optim.AdamW, {}, 44),
}
NORM_BYTES, COPY_BYTES = 16, 8
SECONDS = 1.0  # of each turn at least, for what takes less than that


def shapes(hidden: int, layers: int) -> list[tuple[int, ...]]:
    """Return the shapes of all parameters of a stack of LSTMs with one input, and an output layer of ten units."""
    found: list[tuple[int, ...]] = []
    for layer in range(layers):
        found += [(4 * hidden, hidden if layer else 1), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    return [*found, (10, hidden), (10,)]


class Update:
    """An update of a network of random weights from random gradients."""

    def __init__(self, base: str, size: str, *, clip: bool, fused: bool, device: torch.device) -> None:
        make, options, _ = BASES[base]
        torch.manual_seed(0)
        self.params = [torch.nn.Parameter(0.1 * torch.randn(s, device=device)) for s in shapes(*SIZES[size])]
        self.count = sum(p.numel() for p in self.params)
        self.gradients = [0.01 * torch.randn_like(p) for p in self.params]
        inner = make(self.params, lr=1e-4, foreach=True, **options)
        self.optimizer = FPTT(inner, alpha=0.5, max_norm=1.0 if clip else None, fused=fused)
        self.fused = fused
        for _ in range(2):  # the first makes the state, the second compiles
            self.run()
        engine = self.optimizer.fused_update
        if engine is not None and engine.problem is not None:
            raise SystemExit(f"the update is not fused: {engine.problem}")

    def run(self) -> None:
        """Make one update; a fused one keeps the gradients' values, which do not matter for the time of a plain one."""
        for p, g in zip(self.params, self.gradients, strict=True):
            p.grad = g
        self.optimizer.step()


class Copy:
    """A copy of as many numbers as there are parameters."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self.source, self.target = torch.ones(count, device=device), torch.zeros(count, device=device)
        self.run()

    def run(self) -> None:
        """Read and write each number once."""
        self.target.copy_(self.source)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one run: of as many as fit into about a fiftieth of `SECONDS`, at least one."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    done, spent = 0, 0.0
    wait()
    began = time.perf_counter()
    while spent < SECONDS / 50:
        run()
        done += 1
        if device.type == "cpu" or done % 10 == 0:
            wait()
            spent = time.perf_counter() - began
    return spent / done


def measure(base: str, size: str, *, clip: bool, repeats: int, device: torch.device) -> dict[str, Any]:
    """Measure one row: seconds of plain, fused and copy, taking turns."""
    plain, fused = (Update(base, size, clip=clip, fused=f, device=device) for f in (False, True))
    copy = Copy(plain.count, device)
    times: dict[str, list[float]] = {"plain": [], "fused": [], "copy": []}
    for _ in range(repeats):
        for name, each in (("plain", plain), ("fused", fused), ("copy", copy)):
            times[name].append(seconds(each.run, device))
    needed = BASES[base][2] + (NORM_BYTES if clip else 0)
    return {"base": base, "size": size, "clip": clip, "parameters": plain.count, "bytes": needed, "seconds": times}


def ratios(over: list[float], under: list[float], factor: float = 1.0) -> str:
    """Return median (smallest–largest) of the turns' ratios."""
    each = [factor * a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})"


def table(rows: list[dict[str, Any]], *, absolute: bool) -> str:
    """Return bytes per second relative to the copy's, and the gain."""
    lines = [
        "| base, clip | parameters | bytes per parameter | plain: of the copy's bytes/s | fused: of the copy's bytes/s "
        "| plain / fused, time |" + (" fused, GB/s | copy, GB/s |" if absolute else ""),
        "|---|---|---|---|---|---|" + ("---|---|" if absolute else ""),
    ]
    for row in rows:
        times, factor = row["seconds"], row["bytes"] / COPY_BYTES
        line = (
            f"| {row['base']}, {'clip' if row['clip'] else 'no clip'} | {row['parameters']:,} | {row['bytes']} "
            f"| {ratios(times['copy'], times['plain'], factor)} | {ratios(times['copy'], times['fused'], factor)} "
            f"| {ratios(times['plain'], times['fused'])} |"
        )
        if absolute:
            count = row["parameters"]
            line += f" {row['bytes'] * count / statistics.median(times['fused']) / 1e9:,.0f} |"
            line += f" {COPY_BYTES * count / statistics.median(times['copy']) / 1e9:,.0f} |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES], help="with adam; the others at 20M")
    parser.add_argument("--bases", nargs="+", choices=BASES, default=[*BASES])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device(options.device)

    points = [("adam", size, clip) for size in options.sizes for clip in (True, False)]
    others = "20M" if "20M" in options.sizes else options.sizes[-1]
    points += [(base, others, True) for base in options.bases if base != "adam"]
    rows = [measure(b, s, clip=clip, repeats=options.repeats, device=device) for b, s, clip in points]
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    if options.json is not None:
        record: dict[str, Any] = {"device": name, "versions": versions(), "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows, absolute=device.type == "cuda"))


if __name__ == "__main__":
    main()
