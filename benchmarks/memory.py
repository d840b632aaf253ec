"""Peak memory against the length of the sequence: FPTT's stays, full BPTT's grows with every step.

    python -m benchmarks.memory --json results/memory_length.json --figure docs/figures/memory.png
    python -m benchmarks.memory --json results/memory_length.json --show        # table and plot of what is there

One LSTM of 128 on T random numbers and a label per sequence, windows of 28 steps, Adam. A point is a fresh process of
one thread that trains two batches; its memory is the rise of the process's high-water mark over what it held when all
was built, the input lay in memory and a sequence of two windows had been trained (so that libraries are loaded). On a
GPU it is the rise of what torch's allocator gave out. The input is counted by itself. A process that comes to need more
than the limit is ended, and its point is said not to fit. The table shows the median of the repeats (smallest–largest).
"""

import argparse
import ctypes
import gc
import json
import math
import multiprocessing as mp
import os
import signal
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fptt_dist.algorithm import FPTT, SCHEMES
from fptt_dist.algorithm.losses import TerminalLoss
from fptt_dist.algorithm.target_estimates import UniformEstimate
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.parallel import Communicator, Engine, NoSync, Replicated
from fptt_dist.tasks import Batch
from fptt_dist.training.run_dir import versions
from fptt_dist.training.window_loop import WindowLoop

METHODS = ("bptt", "fptt")
LENGTHS = (784, 1568, 3136, 6272, 12544, 25088, 65520)  # multiples of 28: one shape of window
STEPS, CLASSES, BATCHES, MIB, GIB = 28, 10, 2, 2**20, 2**30
FLAT = 0.05  # of the smallest: how far apart FPTT's points may lie
COLORS = {"bptt": "#D55E00", "fptt": "#0072B2"}  # Okabe & Ito's
MARKERS = {"bptt": "o", "fptt": "s"}
LABELS = {"bptt": "full BPTT", "fptt": f"FPTT, windows of {STEPS}"}


class Images:
    """The members of a task that the loop reads: a label per sequence of `length` numbers."""

    loss = TerminalLoss(UniformEstimate(CLASSES))

    def __init__(self, length: int) -> None:
        self.length = length

    def window_metric(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the accuracy, as every task of labels does."""
        return (output[-1].argmax(-1) == target).float().mean()


def build(method: str, length: int, hidden: int, device: torch.device) -> WindowLoop:
    """Build network, optimizer and loop as a run of one worker has them."""
    torch.manual_seed(0)
    network = Network(recurrent_layer("lstm", 1, hidden), hidden, CLASSES, output_steps="last").to(device)
    engine = Engine(Communicator(), Replicated(), NoSync())
    engine.prepare(network)
    adam = torch.optim.Adam(network.parameters(), lr=1e-3, foreach=True)
    optimizer = FPTT(adam, alpha=0.5 if method == "fptt" else 0.0, max_norm=1.0)
    engine.attach(optimizer)
    windows = math.ceil(length / STEPS) if method == "fptt" else 1
    return WindowLoop(network, Images(length), engine, optimizer, SCHEMES[method], windows=windows)  # type: ignore


def data(length: int, batch: int, device: torch.device) -> Batch:
    """Draw random numbers and labels."""
    return Batch(torch.rand(length, batch, 1).to(device), torch.randint(CLASSES, (batch,)).to(device))


def _status(name: str, process: int | str = "self") -> int:
    """Return the bytes of a line of /proc/…/status; 0 of a process that has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _settle(device: torch.device) -> int:
    """Free unused memory, reset the high-water mark, and return the bytes held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def work(method: str, length: int, options: argparse.Namespace, pipe: Connection) -> None:
    """Measure one point and send its values."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    build(method, 2 * STEPS, options.hidden, device).run(data(2 * STEPS, options.batch, device))
    loop, batch = build(method, length, options.hidden, device), data(length, options.batch, device)
    before = _settle(device)
    pipe.send({"held": before, "input": batch.inputs.numel() * batch.inputs.element_size()})
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (before + options.limit) / total))
    began = time.perf_counter()
    try:
        for _ in range(BATCHES):
            result, _ = loop.run(batch)
            assert bool(torch.isfinite(result.window_losses).all())
    except (MemoryError, RuntimeError) as error:  # the system refuses what is asked for at once
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            return
        raise
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")
    pipe.send({"rise": peak - before, "seconds": (time.perf_counter() - began) / BATCHES, "updates": loop.updates})


def measure(method: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one repeat of one point; without a rise where it does not fit."""
    context = mp.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(method, length, options, there), daemon=True)
    process.start()
    there.close()
    try:
        built = here.recv()
        bound = built["held"] + options.limit if torch.device(options.device).type == "cpu" else math.inf
        while not here.poll(0.01):
            if _status("VmRSS", process.pid or 0) > bound:
                return {"fits": False, **built}
        trained = _received(here)
        process.join()
        if trained is None and process.exitcode:
            raise SystemExit(f"{method}, T = {length}: the process died")
        return {"fits": trained is not None and trained["rise"] <= options.limit, **built, **(trained or {})}
    except EOFError:
        raise SystemExit(f"{method}, T = {length}: the process died") from None
    finally:
        process.kill()
        process.join()


def _received(pipe: Connection) -> dict[str, Any] | None:
    try:
        return pipe.recv()
    except EOFError:
        return None


def middle(point: dict[str, Any], name: str = "rise") -> float:
    """Return the median of a point's repeats."""
    return statistics.median(each[name] for each in point["repeats"])


def fitting(points: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return the method's points that fit, by length."""
    own = [point for point in points if point["method"] == method and all(each["fits"] for each in point["repeats"])]
    return sorted(own, key=lambda point: point["length"])


def line_of(points: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Return bytes per step, bytes at no step, and the largest relative distance of a point from that line.

    Relative distances are what is made small, since lengths range over two orders of magnitude.
    """
    lengths, rises = (np.array([float(value) for value in row]) for row in zip(*map(_pair, points), strict=True))
    slope, start = np.polyfit(lengths, rises, 1, w=1 / rises)
    return float(slope), float(start), float(np.abs((slope * lengths + start) / rises - 1).max())


def _pair(point: dict[str, Any]) -> tuple[int, float]:
    return point["length"], middle(point)


def longest(per_step: float, start: float, memory: float) -> int:
    """Return T at which training and input fill `memory`, by the line."""
    return int((memory - start) / per_step)


def node_memory(device: str) -> int:
    """Return the bytes of memory of the GPU or of the node."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def table(points: list[dict[str, Any]]) -> str:
    """Return one row per length: the input, and each method's rise and its ratio to that of the shortest."""
    methods = [method for method in METHODS if any(point["method"] == method for point in points)]
    cells = "".join(f" {LABELS[method]}, MiB | × shortest |" for method in methods)
    lines = [f"| T | input, MiB |{cells}", "|---|---|" + "---|---|" * len(methods)]
    for length in sorted({point["length"] for point in points}):
        row = ""
        for method in methods:
            found = next((p for p in points if (p["method"], p["length"]) == (method, length)), None)
            row += " | |" if found is None else _cell(found, fitting(points, method))
        size = next(p for p in points if p["length"] == length)["repeats"][0]["input"]
        lines.append(f"| {length:,} | {size / MIB:.1f} |{row}")
    return "\n".join(lines)


def _cell(point: dict[str, Any], own: list[dict[str, Any]]) -> str:
    if point not in own:
        return " does not fit | |"
    rises = [each["rise"] / MIB for each in point["repeats"]]
    spread = f"{middle(point) / MIB:,.1f} ({min(rises):,.1f}–{max(rises):,.1f})"
    return f" {spread} | {middle(point) / middle(own[0]):.2f} |"


def verdicts(points: list[dict[str, Any]], limit: int, machine: int, batch: int) -> list[str]:
    """Return the conclusions from the points, in sentences."""
    found = []
    for method in METHODS:
        own = fitting(points, method)
        if len(own) < 2:
            continue
        input_step = own[0]["repeats"][0]["input"] / own[0]["length"]
        rises = [middle(point) for point in own]
        if method == "fptt":
            spread = max(rises) / min(rises) - 1
            flat = "flat" if spread <= FLAT else "NOT flat"
            lengths = [longest(input_step, max(rises), memory) for memory in (limit, machine)]
            found.append(
                f"- {LABELS[method]}: {flat}: the largest is {spread:.1%} above the smallest, from T = "
                f"{own[0]['length']:,} to {own[-1]['length']:,}. Only the input ({input_step:.0f} bytes per step) "
                f"bounds T, at about {lengths[0]:,} in {limit / GIB:g} GiB and "
                f"{lengths[1]:,} in {machine / GIB:.1f} GiB."
            )
        else:
            slope, start, off = line_of(own)
            lengths = [longest(slope + input_step, start, memory) for memory in (limit, machine)]
            found.append(
                f"- {LABELS[method]}: {slope / 1024:,.1f} KiB per step ({slope / batch:,.0f} bytes per step and "
                f"sequence); no point is further than {off:.1%} from that line. The longest T that fits, by the line, "
                f"is about {lengths[0]:,} in {limit / GIB:g} GiB and {lengths[1]:,} in {machine / GIB:.1f} GiB."
            )
    return found


def draw(points: list[dict[str, Any]], limit: int, batch: int, hidden: int, path: Path) -> None:
    """Draw the plot, log-log."""
    figure = Figure(figsize=(7, 4.6), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    last = max(point["length"] for point in points)
    for method in METHODS:
        own = fitting(points, method)
        if not own:
            continue
        lengths, rises = zip(*map(_pair, own), strict=True)
        style = {"color": COLORS[method], "linewidth": 2.5}
        sizes = [rise / MIB for rise in rises]
        axes.plot(lengths, sizes, marker=MARKERS[method], markersize=7, label=LABELS[method], **style)
        if lengths[-1] < last and len(own) > 1:
            slope, start, _ = line_of(own)
            label = "by the line through it: does not fit"
            ends = [lengths[-1], last]
            axes.plot(ends, [(slope * t + start) / MIB for t in ends], linestyle=":", label=label, **style)
    axes.axhline(limit / MIB, color="0.35", linewidth=1.5, linestyle="--", label=f"the limit, {limit / GIB:g} GiB")
    ticks = sorted({point["length"] for point in points})
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks], fontsize=11, rotation=30)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", labelsize=12)
    axes.set_xlabel("T, steps of a sequence", fontsize=13)
    axes.set_ylabel("peak memory of training, MiB", fontsize=13)
    axes.set_title(f"LSTM of {hidden}, {batch} sequences; the input is not counted", fontsize=13)
    axes.grid(visible=True, which="major", color="0.88")
    axes.legend(fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _bytes(text: str) -> int:
    """Parse a size such as 4GiB or 512MiB."""
    for unit, size in (("GiB", GIB), ("MiB", MIB)):
        if text.endswith(unit) and text.removesuffix(unit).strip().replace(".", "", 1).isdecimal():
            return int(float(text.removesuffix(unit)) * size)
    raise argparse.ArgumentTypeError(f"{text!r} is no size: type such as 4GiB or 512MiB")


def main() -> None:
    """Measure what is asked for, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="T")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--limit", type=_bytes, default=8 * GIB, help="of training, the input not counted; as 8GiB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="what was measured")
    parser.add_argument("--figure", type=Path, help="the plot, a PNG")
    parser.add_argument("--show", action="store_true", help="measure nothing: table and plot of the JSON file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of a point goes too
    if options.show:
        if options.json is None:
            parser.error("--show needs --json FILE, of an earlier run")
        found = json.loads(options.json.read_text())
    else:
        found = _measured(options)
    points, limit = found["points"], found["limit"]
    if options.figure:
        draw(points, limit, found["batch"], found["hidden"], options.figure)
    print(f"Peak memory of training, LSTM of {found['hidden']}, {found['batch']} sequences, {found['device']}\n")
    print(table(points))
    print("", *verdicts(points, limit, found["memory"], found["batch"]), sep="\n")
    print("\n" + ", ".join(f"{name} {value}" for name, value in found["versions"].items()))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all points, the lengths and methods in turn; kept in the JSON file as they come."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what a tensor leaves goes back to the system at once
    points = [{"method": m, "length": t, "repeats": []} for t in options.lengths for m in METHODS]
    known = {name: getattr(options, name) for name in ("batch", "hidden", "limit", "device")}
    found = {**known, "steps": STEPS, "memory": node_memory(options.device), "versions": versions()}
    for _ in range(options.repeats):
        for point in points:
            point["repeats"].append(measure(point["method"], point["length"], options))
            last = point["repeats"][-1]
            fits = (
                f"{last['rise'] / MIB:,.1f} MiB, {last['seconds']:.1f} s per batch" if last["fits"] else "does not fit"
            )
            print(f"{point['method']}, T = {point['length']}: {fits}", file=sys.stderr, flush=True)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                begun = [each for each in points if each["repeats"]]
                options.json.write_text(json.dumps({**found, "points": begun}, indent=1) + "\n")
    return {**found, "points": points}


if __name__ == "__main__":
    main()
