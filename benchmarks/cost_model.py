"""Cost of a collective: α + β · bytes, fitted to timings, and projected to clusters that were not available.

    python -m benchmarks.cost_model results/communication.json

The fit is to all-reduces timed by themselves. The projection is arithmetic on stated assumptions, not a measurement.
"""

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKERS = (8, 64, 512, 4096)
SIZES = {"LSTM-128": 4 * 82_186, "LSTM of 22 M parameters": 4 * 22_056_310}
ROWS = {"BPTT": (1, 1), "gradient": (28, 1), "consensus H = 28": (1, 3), "consensus H = 280": (0.1, 3)}  # calls, copies


@dataclass(frozen=True)
class Line:
    """Seconds of a collective: alpha + beta · bytes.

    Attributes:
        alpha: seconds.
        beta: seconds per byte.
        error: median |fitted / timed − 1|.
    """

    alpha: float
    beta: float
    error: float

    def __call__(self, size: float) -> float:
        """Return the seconds of a collective of `size` bytes."""
        return self.alpha + self.beta * size


def fit(timed: dict[float, float]) -> Line:
    """Fit by least squares of log(fitted / timed), so that small collectives count as much as large ones; a search."""

    def loss(line: tuple[float, float]) -> float:
        alpha, beta = math.exp(line[0]), math.exp(line[1])
        return sum(math.log((alpha + beta * size) / seconds) ** 2 for size, seconds in timed.items())

    largest = max(timed)
    best, step = (math.log(min(timed.values())), math.log(timed[largest] / largest)), 1.0
    while step > 1e-4:
        moves = [(best[0] + step * i, best[1] + step * j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        found = min(moves, key=loss)
        if loss(found) < loss(best):
            best = found
        else:
            step /= 2.0
    alpha, beta = math.exp(best[0]), math.exp(best[1])
    errors = [abs((alpha + beta * size) / seconds - 1.0) for size, seconds in timed.items()]
    return Line(alpha, beta, statistics.median(errors))


def medians(rounds: list[dict[str, Any]]) -> dict[float, float]:
    """Return seconds by bytes of the all-reduces timed by themselves: the median of all rounds."""
    timed: dict[float, list[float]] = {}
    for each in rounds:
        for size, seconds in each["collectives"].items():
            timed.setdefault(float(size), []).extend(seconds)
    return {size: statistics.median(seconds) for size, seconds in timed.items()}


@dataclass(frozen=True)
class Link:
    """Assumed: seconds of one step of a ring and of a tree, of a call by itself, and bytes per second each way."""

    name: str
    ring: float
    tree: float
    call: float
    bandwidth: float

    def seconds(self, workers: int, size: float, algorithm: str) -> float:
        """Return the seconds of one all-reduce."""
        steps = 2 * (workers - 1) * self.ring if algorithm == "ring" else 2 * math.log2(workers) * self.tree
        return self.call + steps + 2 * (workers - 1) / workers * size / self.bandwidth


# Latencies: NCCL's own tuning model (src/graph/tuning.cc: baseLat and hwLat, protocol LL128). Bandwidths: nominal.
LINKS = (
    Link("100 Gb/s", ring=4.0e-6, tree=8.5e-6, call=14e-6, bandwidth=12.5e9),
    Link("NVLink", ring=1.9e-6, tree=1.25e-6, call=14e-6, bandwidth=450e9),
)


def fitted_table(groups: dict[str, Any]) -> str:
    """Return the fits of all groups of one model, by link and number of workers."""
    pooled: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in groups.values():
        group = entry["group"]
        if entry["rounds"] and group["model"] == "LSTM-128":
            link = "loopback" if group["rate"] is None else f"{group['rate']} Mbit/s"
            pooled.setdefault((link, group["world"]), []).extend(entry["rounds"])
    lines = [
        "| link | processes | α, µs | 1/β, MB/s | wire, MB/s | median error of the fit | rate measured, Mbit/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (link, world), rounds in sorted(pooled.items()):
        line = fit(medians(rounds))
        measured = [r["link"] for r in rounds if r["link"]]
        wire = "–" if not measured else f"{float(link.split()[0]) / 8 / (2 * (world - 1) / world):.1f}"
        rate = f"{statistics.median(measured):.1f}" if measured else "–"
        through = f"{1e-6 / line.beta:,.1f}" if line.beta else "∞"
        lines.append(f"| {link} | {world} | {line.alpha * 1e6:,.0f} | {through} | {wire} | {line.error:.0%} | {rate} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def projected_table(size: int) -> str:
    """Return the communication of one batch (K = 28) by workers, link and algorithm, for a model of `size` bytes."""
    columns = [(link, algorithm) for link in LINKS for algorithm in ("ring", "tree")]
    lines = [
        "| workers | | " + " | ".join(f"{link.name}, {algorithm}" for link, algorithm in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for workers in WORKERS:
        for row, (calls, copies) in ROWS.items():
            cells = [_time(calls * link.seconds(workers, copies * size, algorithm)) for link, algorithm in columns]
            lines.append(f"| {workers} | {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def projection(groups: dict[str, Any]) -> str:
    """Return all that the model says, as Markdown."""
    parts = ["\n### Time of a collective, fitted: α + β · bytes\n", fitted_table(groups)]
    for name, size in SIZES.items():
        parts += [f"\n### Projected: seconds of communication per batch, {name} ({size / 1e6:.2f} MB)\n"]
        parts += [projected_table(size)]
    assumptions = [
        f"{link.name}: a step of a ring {link.ring * 1e6:g} µs, of a tree {link.tree * 1e6:g} µs, a call "
        f"{link.call * 1e6:g} µs (NCCL's tuning model, LL128), {link.bandwidth / 1e9:g} GB/s each way (nominal)"
        for link in LINKS
    ]
    parts += [
        "\nAssumed: ring 2 (R − 1) steps, tree 2 log₂ R; both move 2 (R − 1)/R · bytes through each link, pipelined."
    ]
    return "\n".join([*parts, *assumptions])


def main() -> None:
    """Print the model of a JSON file that benchmarks.communication wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--json", type=Path, help="write the fits and the projection there too")
    options = parser.parse_args()
    groups = json.loads(options.results.read_text())["groups"]
    print(projection(groups))
    if options.json:
        fits = {}
        for key, entry in groups.items():
            if entry["rounds"]:
                line = fit(medians(entry["rounds"]))
                fits[key] = {"alpha": line.alpha, "beta": line.beta, "error": line.error}
        projected = [
            {
                "workers": w,
                "link": link.name,
                "algorithm": a,
                "model": m,
                "row": row,
                "seconds": n * link.seconds(w, c * s, a),
            }
            for w in WORKERS
            for link in LINKS
            for a in ("ring", "tree")
            for m, s in SIZES.items()
            for row, (n, c) in ROWS.items()
        ]
        options.json.write_text(json.dumps({"fits": fits, "projected": projected}, indent=1) + "\n")


if __name__ == "__main__":
    main()
