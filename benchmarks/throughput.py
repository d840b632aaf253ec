"""Sequences per second of FPTT beside its baselines, its textbook transcription and another implementation.

    python -m benchmarks.throughput --case lstm128 --repeats 7 --json results/throughput.json
    python -m benchmarks.throughput --case small --compile
    python -m benchmarks.throughput --case lstm1000x3 --device cuda --windows 10,28

    lstm128       LSTM-128, T = 784, B = 128
    lstm1000x3    three layers of LSTM-1000, T = 150, B = 16
    small         LSTM-64, T = 784, B = 16, K = T: the update dominates

Every row trains on the same random batch, a label per sequence; the rows take turns, repeat by repeat, after one batch
to warm up. A ratio is one of medians; behind it stand the smallest and the largest of the ratios of single repeats. The
update's share (naive: without the penalty, which is in its graph) is measured on one more batch.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.naive import NaiveFPTT
from fptt_dist.algorithm import FPTT, SCHEMES, TerminalLoss
from fptt_dist.algorithm.target_estimates import UniformEstimate
from fptt_dist.models import Network, recurrent_layer
from fptt_dist.parallel import Communicator, Engine, NoSync, Replicated
from fptt_dist.tasks import Batch, Task
from fptt_dist.training.cuda_graph import FIRST, BatchGraph, CudaCapture
from fptt_dist.training.run_dir import versions
from fptt_dist.training.window_loop import WindowLoop

CLASSES, ALPHA, RATE, MAX_NORM = 10, 0.5, 1e-3, 1.0
INSTALL = "pip install --no-deps spikingjelly==2.0.0 loguru"


@dataclass(frozen=True)
class Case:
    """One network on one length of sequences; `windows` holds the K that are compared."""

    hidden: int
    layers: int
    length: int
    batch: int
    windows: tuple[int, ...]


CASES = {
    "lstm128": Case(128, 1, 784, 128, (10, 28, 100, 784)),
    "lstm1000x3": Case(1000, 3, 150, 16, (10, 28, 100, 150)),
    "small": Case(64, 1, 784, 16, (784,)),
}


@dataclass
class Row:
    """One method with one K.

    Attributes:
        run: trains on one batch.
        owner, update: the method of `owner` that is the update; None where it cannot be told apart.
        seconds: of each repeat.
        share: of a batch spent in the update.
    """

    method: str
    windows: int
    run: Callable[[Batch], Any]
    owner: Any = None
    update: str = ""
    seconds: list[float] = field(default_factory=list)
    share: float | None = None


class RandomPixels(Task):
    """Random sequences with random labels."""

    name, inputs, outputs, metric, higher_is_better = "random pixels", 1, CLASSES, "accuracy", True

    def __init__(self, case: Case) -> None:
        self.length = case.length
        self.train_examples = case.batch
        self.loss = TerminalLoss(UniformEstimate(CLASSES))

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        generator = torch.Generator().manual_seed(cursor)
        inputs = torch.rand(self.length, size, 1, generator=generator)
        return Batch(inputs, torch.randint(0, CLASSES, (size,), generator=generator)).select(part)

    def evaluation_batches(self, split: str, rank: int, world: int) -> Iterator[Batch]:
        return iter(())

    def score(self, output: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return torch.zeros((), dtype=torch.float64), 0


def network(case: Case, device: torch.device, *, torchs: bool = False) -> Network:
    """Build the network, with the same weights at each call.

    `torchs`: with torch's own LSTM, which runs one-step windows differently.
    """
    torch.manual_seed(0)
    layer = recurrent_layer("lstm", 1, case.hidden, layers=case.layers)
    if torchs:
        weights = layer.state_dict()
        layer = nn.LSTM(1, case.hidden, num_layers=case.layers)
        layer.load_state_dict(weights)
    return Network(layer, case.hidden, CLASSES, output_steps="last").to(device)


def loop(case: Case, procedure: str, windows: int, device: torch.device, *, fused: bool = False) -> WindowLoop:
    """Build the loop of a method of the package as a run builds it."""
    net = network(case, device)
    engine = Engine(Communicator(), Replicated(), NoSync())
    engine.prepare(net)
    base = torch.optim.Adam(net.parameters(), lr=RATE, foreach=True)
    alpha = ALPHA if procedure == "fptt" else 0.0
    optimizer = FPTT(base, alpha=alpha, max_norm=MAX_NORM, fused=fused)
    engine.attach(optimizer)
    task = RandomPixels(case)
    task.loss.to(device)
    return WindowLoop(net, task, engine, optimizer, SCHEMES[procedure], windows=windows)


def ours(name: str, case: Case, procedure: str, windows: int, device: torch.device, *, fused: bool = False) -> Row:
    """Return a row of the package: a batch, and the check at its end that all was finite."""
    trained = loop(case, procedure, windows, device, fused=fused)
    captured = name.endswith("graph")
    runner = BatchGraph(trained, CudaCapture(device)) if captured else trained

    def run(batch: Batch) -> None:
        runner.run(batch)
        trained.engine.after_batch()
        if not trained.engine.control.all_finite():
            raise SystemExit(f"{name}, K = {windows}: not finite")

    return Row(name, windows, run, None if captured else trained.engine, "step")


def peer(case: Case, device: torch.device) -> Row:
    """Return the row of spikingjelly's `fptt_online_training`, an update per step, on the same network.

    It knows no clip and one loss for all steps, so β is in the targets.
    """
    from spikingjelly.activation_based import base  # pyright: ignore[reportMissingImports]
    from spikingjelly.activation_based import functional as states  # pyright: ignore[reportMissingImports]
    from spikingjelly.activation_based.learning import online_learning  # pyright: ignore[reportMissingImports]

    class Stateful(base.MemoryModule):
        """The network, one step at a time, its state inside."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network(case, device, torchs=True)
            self.register_memory("hidden", None)
            self.register_memory("cell", None)

        def single_step_forward(self, x: Tensor) -> Tensor:
            state = None if self.hidden is None else (self.hidden, self.cell)
            y, (self.hidden, self.cell) = self.network(x.unsqueeze(0), state)
            return y[0]

    model = Stateful()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    slow = online_learning.fptt_online_training_init_w_ra(optimizer)
    beta = (torch.arange(1, case.length + 1, device=device) / case.length).view(-1, 1, 1)

    def run(batch: Batch) -> None:
        targets = torch.lerp(
            torch.full_like(beta, 1.0 / CLASSES), functional.one_hot(batch.targets, CLASSES).float(), beta
        )
        online_learning.fptt_online_training(
            model, optimizer, batch.inputs, targets, functional.cross_entropy, ALPHA, slow
        )
        states.reset_net(model)

    return Row("spikingjelly", case.length, run)


def rows_of(case: Case, windows: tuple[int, ...], device: torch.device, *, fused: bool) -> list[Row]:
    """Return all that is compared: BPTT, and for each K the others."""
    rows = [ours("bptt", case, "bptt", 1, device)]
    for k in windows:
        rows += [ours(name, case, name, k, device) for name in ("tbptt_accumulated", "tbptt", "fptt")]
        if fused:
            rows.append(ours("fptt, fused", case, "fptt", k, device, fused=True))
            if device.type == "cuda":
                rows.append(ours("fptt, fused, graph", case, "fptt", k, device, fused=True))
        naive = NaiveFPTT(network(case, device, torchs=True), windows=k, alpha=ALPHA, lr=RATE, max_norm=MAX_NORM)
        rows.append(Row("naive", k, naive.run, naive, "update"))
        if k == case.length and importlib.util.find_spec("spikingjelly") is not None:
            rows.append(peer(case, device))
    return rows


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of `work`, a GPU's included; on a CPU the process's own time, whatever else runs there."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _wait(device)
    began = clock()
    work()
    _wait(device)
    return clock() - began


def share_of_update(row: Row, batch: Batch, device: torch.device) -> float | None:
    """Measure the update's share of one more batch."""
    if row.owner is None:
        return None
    update, spent = getattr(row.owner, row.update), []

    def timed(*arguments: Any, **options: Any) -> Any:
        answer: list[Any] = []
        spent.append(seconds(lambda: answer.append(update(*arguments, **options)), device))
        return answer[0]

    setattr(row.owner, row.update, timed)
    total = seconds(lambda: row.run(batch), device)
    delattr(row.owner, row.update)
    return sum(spent) / total


def measure(case: Case, windows: tuple[int, ...], device: torch.device, repeats: int, *, fused: bool) -> list[Row]:
    """Measure all rows, in turns."""
    batch = RandomPixels(case).train_batch(0, 0, case.batch, slice(0, case.batch)).to(device)
    rows = rows_of(case, windows, device, fused=fused)
    for row in rows:
        for _ in range(FIRST + 2 if row.method.endswith("graph") else 1):  # a graph is captured after some batches
            row.run(batch)
    for number in range(repeats):
        for row in rows:
            row.seconds.append(seconds(lambda row=row: row.run(batch), device))
            print(f"{number + 1}/{repeats} {row.method}, K = {row.windows}", file=sys.stderr, flush=True)
    for row in rows:
        row.share = share_of_update(row, batch, device)
    return rows


def ratio(row: Row, base: Row) -> str:
    """Return the ratio of sequences per second to those of `base`."""
    middle = statistics.median(base.seconds) / statistics.median(row.seconds)
    each = [b / r for b, r in zip(base.seconds, row.seconds, strict=True)]
    return f"{middle:.2f} ({min(each):.2f}–{max(each):.2f})"


def table(case: Case, rows: list[Row], windows: tuple[int, ...], *, absolute: bool) -> str:
    """Return the Markdown table."""
    naive = {row.windows: row for row in rows if row.method == "naive"}
    lines = [
        "| method | K | " + ("sequences/s | " if absolute else "") + "× bptt | × naive | update's share |",
        "|---|---|" + "---|" * (4 if absolute else 3),
    ]
    for row in rows:
        cells = [row.method, str(row.windows)]
        if absolute:
            cells.append(f"{case.batch / statistics.median(row.seconds):,.0f}")
        cells.append(ratio(row, rows[0]))
        cells.append(ratio(row, naive[row.windows]) if row.windows in naive else "")
        cells.append("" if row.share is None else f"{100.0 * row.share:.0f} %")
        lines.append(f"| {' | '.join(cells)} |")
    if case.length in windows and not any(row.method == "spikingjelly" for row in rows):
        lines.append(f"| spikingjelly | {case.length} | not installed: `{INSTALL}` |" + " |" * (3 if absolute else 2))
    return "\n".join(lines)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _windows(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main() -> None:
    """Measure what is asked for, and print a table per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", choices=CASES, action="append", help="one or more; all if not given")
    parser.add_argument("--windows", type=_windows, help="K, separated by commas; the case's own if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compile", action="store_true", help="also FPTT(..., fused=True), and on a GPU its batch as one graph"
    )
    parser.add_argument("--json", type=Path, help="all times; a case that is there already is replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    for name in options.case or CASES:
        case = CASES[name]
        windows = options.windows or case.windows
        rows = measure(case, windows, device, options.repeats, fused=options.compile)
        print(f"{name}: {case.layers} × LSTM-{case.hidden}, T = {case.length}, B = {case.batch}, {options.device}\n")
        print(table(case, rows, windows, absolute=device.type == "cuda"))
        print(f"\n{'; '.join(f'{key} {value}' for key, value in versions().items())}; one thread\n", flush=True)
        if options.json:
            _write(options.json, f"{name}, {options.device}", case, rows)


def _write(path: Path, name: str, case: Case, rows: list[Row]) -> None:
    """Add one case to what the file holds."""
    written = json.loads(path.read_text()) if path.exists() else {}
    numbers = [{key: getattr(row, key) for key in ("method", "windows", "seconds", "share")} for row in rows]
    written[name] = {**asdict(case), "rows": numbers, "versions": versions(), "threads": torch.get_num_threads()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
