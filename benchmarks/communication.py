"""Cost of communication: data-parallel BPTT, gradient averaging and consensus, with latency and on slow links.

    python -m benchmarks.communication --json results/communication.json           # injected latency
    python -m benchmarks.communication --json results/communication.json --links    # network namespaces, as root
    python -m benchmarks.communication --json results/communication.json --show     # the tables of what is there

Starts its own gloo workers on this node. The latency is injected: each collective takes longer by it (not every kernel
has netem). The bandwidth is real: network namespaces joined by veth pairs that `tc tbf` limits. All settings and
latencies of one table are timed in turn by the same workers, in another order each round; a table shows the median
over the rounds (smallest–largest), and ratios are taken within a round. Rounds that the JSON file holds are kept.
"""

import argparse
import json
import multiprocessing as mp
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.communication_tables import computed, report
from benchmarks.communication_worker import ALONE, BATCH, GRADIENT, SETTINGS, Group, work
from benchmarks.cost_model import projection
from benchmarks.links import links, loopback
from fptt_dist.training.run_dir import versions

LATENCIES = (0.0, 0.2, 1.0, 5.0)
RATES = (10, 100, 1000)
ALL = tuple(setting.name for setting in SETTINGS)
FEW = tuple(name for name in ALL if "280" not in name and "H = 7," not in name)
SMALL, LARGE = "LSTM-128", "LSTM 2 × 1350"
ROUGH = {(SMALL, 28): 0.08, (SMALL, 784): 0.7, (LARGE, 28): 20.0}  # seconds per batch, to announce the budget


def latency_groups(quick: bool) -> list[Group]:
    """Return the tables with injected latency."""
    latencies = (0.0, 1.0) if quick else LATENCIES
    return [
        Group(SMALL, length, world, None, latencies, ALL)
        for length in ((28,) if quick else (28, 784))
        for world in (2, 4)
    ]


def link_groups(quick: bool) -> list[Group]:
    """Return the tables with slow links. Rows that would take minutes per batch are computed instead."""
    groups = []
    for rate in (1000,) if quick else RATES:
        for length, world in ((28, 2),) if quick else ((28, 2), (28, 4), (784, 2)):
            groups.append(Group(SMALL, length, world, rate, (0.0,), FEW if length == 28 else _without(FEW, "H = 1")))
        if rate == 1000 and not quick:
            rows = (ALONE, "BPTT, data parallel", GRADIENT, "consensus H = 28", "consensus H = 28, overlapped τ = 7")
            groups.append(Group(LARGE, 28, 2, rate, (0.0,), rows, sweep=(4, 993_000, 88_000_000)))
    return groups


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if not each.endswith(name))


def rough_seconds(group: Group, rounds: int) -> float:
    """Estimate the seconds that a group takes, the start of its workers included."""
    batch = ROUGH[group.model, group.length]
    total = 15.0
    for setting in SETTINGS:
        if setting.name not in group.settings:
            continue
        calls, copies = 28 / (setting.every or 28), 3 if setting.every else 1
        if setting.name == GRADIENT or setting.every == 1:
            calls, copies = 28, 1
        if setting.name == ALONE:
            calls = 0
        size = copies * (88e6 if group.large else 0.33e6) * 2 * (group.world - 1) / group.world
        wire = 0.0 if group.rate is None else size * 8 / (group.rate * 1e6)
        each = sum(batch + calls * (latency / 1e3 + wire) for latency in group.latencies)
        total += rounds * each * setting.batches
    return total


def run_group(group: Group, rounds: list[int], done: Any) -> None:
    """Start the group's workers and time `rounds`; `done` is called with each round's timings, one list per rank."""
    context = mp.get_context("spawn")
    with (
        nullcontext(loopback(group.world, _free_port()))
        if group.rate is None
        else links(group.world, group.rate) as places
    ):
        pipes, processes = [], []
        try:
            for rank, place in enumerate(places):
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(rank, place, group, rounds, there), daemon=True)
                process.start()
                there.close()  # so that a worker that dies is noticed at once
                pipes.append(here)
                processes.append(process)
            for _ in rounds:
                done([pipe.recv() for pipe in pipes])
            for process in processes:
                process.join(30.0)
        except EOFError:
            raise SystemExit(f"{group.key}: a worker died; what is in the JSON file stays, start again") from None
        finally:
            for process in processes:
                process.kill()
                process.join()


def merged(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge one round: for each cell the slowest worker's times, and the mean of the time blocked in collectives."""
    first = ranks[0]
    cells = []
    for same in zip(*(rank["cells"] for rank in ranks), strict=True):
        mean = {name: sum(cell[name] for cell in same) / len(same) for name in ("cpu", "blocked", "calls")}
        cells.append({**same[0], **mean, "seconds": max(cell["seconds"] for cell in same)})
    collectives = {
        size: [max(times) for times in zip(*(rank["collectives"][size] for rank in ranks), strict=True)]
        for size in first["collectives"]
    }
    link = None if first["link"] is None else max(rank["link"] for rank in ranks)
    load = os.getloadavg()[0]
    return {
        "cells": cells,
        "collectives": collectives,
        "sent": first["sent"],
        "slept": first["slept"],
        "link": link,
        "load": load,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Announce, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/communication.json"), help="timings, kept and added to")
    parser.add_argument("--links", action="store_true", help="slow links instead of injected latency; needs root")
    parser.add_argument("--rounds", type=int, help="of each table; default 3 with latency, 1 with slow links")
    parser.add_argument("--only", default="", help="tables whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a small table, to see that it works")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that namespaces and workers go too
    rounds = options.rounds or (1 if options.links or options.quick else 3)

    found: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {"groups": {}}
    groups = link_groups(options.quick) if options.links else latency_groups(options.quick)
    groups = [] if options.show else [group for group in groups if options.only in group.key]
    due = []
    for group in groups:
        entry = found["groups"].setdefault(group.key, {"group": asdict(group), "rounds": []})
        left = list(range(len(entry["rounds"]), rounds))
        if left:
            due.append((group, entry, left))
    cells = sum(group.cells * len(left) for group, _, left in due)
    about = sum(rough_seconds(group, len(left)) for group, _, left in due)
    print(
        f"{len(due)} tables, {cells} cells, batch {BATCH}: about {about / 60:.0f} minutes on two idle cores",
        file=sys.stderr,
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for group, entry, left in due:
        began = time.monotonic()

        def done(ranks: list[dict[str, Any]], entry: dict[str, Any] = entry) -> None:
            entry["rounds"].append(merged(ranks))
            found["versions"] = versions()
            temporary = options.json.with_suffix(".tmp")
            temporary.write_text(json.dumps(found) + "\n")
            temporary.replace(options.json)

        run_group(group, left, done)
        print(f"{group.key}: {len(left)} rounds, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(report(found["groups"]))
    print(computed(found["groups"], LARGE, SMALL))
    print(projection(found["groups"]))


if __name__ == "__main__":
    main()
