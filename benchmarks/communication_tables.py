"""The tables and targets of the communication benchmark, from its timings."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.communication_worker import ALONE, BATCH, GRADIENT, SETTINGS, K
from benchmarks.cost_model import fit, medians

Rounds = list[dict[str, Any]]
GAIN = 0.9  # of what the model says
KEPT = 0.95  # of the throughput without latency
BPTT = "BPTT, data parallel"


def report(groups: dict[str, Any]) -> str:
    """Return all tables, as Markdown."""
    parts = []
    for key, entry in groups.items():
        if entry["rounds"]:
            parts += [f"\n### {key}\n", _throughput(entry), ""]
            parts += _targets(entry) if entry["group"]["rate"] is None else _against_model(entry)
    return "\n".join(parts)


def computed(groups: dict[str, Any], large: str, small: str) -> str:
    """Compute the large model on slow links, where a batch would take minutes: C + collectives × (α + β · bytes).

    C is measured, the line is fitted to the collectives of the small model's tables on the same links.
    """
    entries = [entry for entry in groups.values() if entry["rounds"]]
    bases = [e for e in entries if e["group"]["model"] == large and ALONE in e["rounds"][0]["sent"]]
    thin = {
        entry["group"]["rate"]: fit(medians(entry["rounds"]))
        for entry in entries
        if entry["group"]["model"] == small and entry["group"]["rate"] and entry["group"]["world"] == 2
    }
    if not bases or not thin:
        return ""
    compute = statistics.median(times(bases[0]["rounds"], ALONE, 0.0))
    vector = 4.0 * bases[0]["rounds"][0]["sent"][ALONE]["parameters"]
    rates = sorted(thin)
    lines = [f"| | {' | '.join(f'{rate} Mbit/s' for rate in rates)} |", "|---|" + "---|" * len(rates)]
    for name, (calls, copies) in {GRADIENT: (K, 1), **{f"consensus H = {h}": (K / h, 3) for h in (7, 28, 280)}}.items():
        each = [BATCH / (compute + calls * thin[rate](copies * vector)) for rate in rates]
        lines.append(f"| {name} | {' | '.join(f'≈ {value:.3g}' for value in each)} |")
    title = f"\n### {large}, T = 28, 2 processes, sequences/s computed from C = {compute:.1f} s and the fitted links\n"
    return "\n".join([title, *lines])


def times(rounds: Rounds, setting: str, latency: float, what: str = "seconds") -> list[float]:
    """Return the times of a cell, one per round."""
    return [
        cell[what]
        for r in rounds
        for cell in r["cells"]
        if cell["setting"] == setting and abs(cell["latency"] - latency) < 1e-9
    ]


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Return median (smallest–largest)."""
    middle = show(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({show(min(values))}–{show(max(values))})"


def verdict(values: list[float], goal: float) -> str:
    """Return whether the median reaches the goal; not settled if rounds lie on both sides of it, or there is one."""
    reached = "met" if statistics.median(values) >= goal else "missed"
    settled = len(values) > 1 and (min(values) >= goal) == (max(values) >= goal)
    return reached if settled else f"{reached}, not settled"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _throughput(entry: dict[str, Any]) -> str:
    """Return sequences per second: a row per setting, a column per latency."""
    rounds, latencies = entry["rounds"], entry["group"]["latencies"]
    sent = rounds[0]["sent"]
    first = "sequences/s" if entry["group"]["rate"] else None
    titles = [first or f"L = {latency:g} ms" for latency in latencies]
    lines = [
        f"| | collectives per batch | MB per batch | CPU ms per batch | {' | '.join(titles)} |",
        "|---|---|---|---|" + "---|" * len(titles),
    ]
    for setting in SETTINGS:
        if setting.name not in sent:
            continue
        plan = sent[setting.name]
        calls = 0 if setting.name == ALONE else plan["collectives"]
        size = 0 if setting.name == ALONE else plan["bytes"] / 1e6
        rates = [spread([BATCH / t for t in times(rounds, setting.name, latency)], _number) for latency in latencies]
        cpu = statistics.median(t for latency in latencies for t in times(rounds, setting.name, latency, "cpu"))
        lines.append(f"| {setting.name} | {calls:g} | {size:.3g} | {cpu * 1e3:.1f} | {' | '.join(rates)} |")
    return "\n".join(lines)


def _targets(entry: dict[str, Any]) -> list[str]:
    """Return the targets with injected latency, and the values reached."""
    rounds, group = entry["rounds"], entry["group"]
    compute = statistics.median(times(rounds, ALONE, 0.0))
    window = compute / K
    blocked = statistics.median(times(rounds, GRADIENT, 0.0, "blocked"))
    gradient = statistics.median(times(rounds, GRADIENT, 0.0))
    line = fit(medians(rounds))
    bytes_each = rounds[0]["sent"][GRADIENT]["each"]
    idle = line(bytes_each)
    slept = {latency: statistics.median(r["slept"][str(latency)] for r in rounds) for latency in group["latencies"]}
    found = [
        f"C = {compute * 1e3:.1f} ms per batch ({ALONE}, L = 0), a window {window * 1e3:.2f} ms; "
        f"{len(rounds)} rounds; load of the machine {min(r['load'] for r in rounds):.1f}–"
        f"{max(r['load'] for r in rounds):.1f}; slept for L = "
        + ", ".join(f"{latency:g}: {seconds * 1e3:.2f} ms" for latency, seconds in slept.items() if latency),
        f"A window of gradient averaging takes {(gradient - compute) / K * 1e6:,.0f} µs more than one alone: "
        f"{blocked / K * 1e6:,.0f} µs in the collective, of which {idle * 1e6:,.0f} µs are the collective of "
        f"{bytes_each / 1e6:.2f} MB by itself (fitted) and the rest is waiting for the other process.",
    ]
    simple = 4.0 * compute / (K - 5)
    found.append(
        f"From the model (C + {K} L)/(C + L), the gain of consensus H = {K} reaches 5 at L = {simple * 1e3:.2f} ms."
    )
    found += ["", "| L, ms | gain of consensus H = 28 over gradient | 0.9 × model | |", "|---|---|---|---|"]
    for latency in group["latencies"]:
        pairs = zip(times(rounds, GRADIENT, latency), times(rounds, f"consensus H = {K}", latency), strict=True)
        gains = [a / b for a, b in pairs]
        seconds = latency / 1e3
        goal = GAIN * (compute + K * seconds) / (compute + seconds)
        found.append(f"| {latency:g} | {spread(gains, lambda v: f'{v:.2f}')} | {goal:.2f} | {verdict(gains, goal)} |")
    found += ["", "| | L, ms | throughput kept of L = 0 | target | |", "|---|---|---|---|---|"]
    for name in rounds[0]["sent"]:
        for latency in group["latencies"]:
            if latency and ("overlapped" in name or name == f"consensus H = {K}"):
                pairs = zip(times(rounds, name, 0.0), times(rounds, name, latency), strict=True)
                kept = [a / b for a, b in pairs]
                due = "overlapped" in name and latency / 1e3 < window
                found_so = verdict(kept, KEPT) if due else ""
                goal = f"≥ {KEPT:.0%}" if due else "none, L above one window" if "overlapped" in name else "none"
                found.append(f"| {name} | {latency:g} | {spread(kept, lambda v: f'{v:.0%}')} | {goal} | {found_so} |")
    return found


def _against_model(entry: dict[str, Any]) -> list[str]:
    """Return the table of slow links: each setting beside C + calls × (α + β bytes)."""
    rounds, rows = entry["rounds"], ["| | seconds per batch | model | |", "|---|---|---|---|"]
    line = fit(medians(rounds))
    alone = times(rounds, ALONE, 0.0)
    for name, plan in rounds[0]["sent"].items():
        if name != ALONE and alone and "BPTT" not in name:
            seconds = statistics.median(times(rounds, name, 0.0))
            model = statistics.median(alone) + plan["collectives"] * line(plan["each"])
            if "overlapped" not in name:
                rows.append(f"| {name} | {seconds:.3g} | {model:.3g} | {seconds / model:.2f} |")
    rate = statistics.median(r["link"] for r in rounds)
    return [f"Measured between two workers: {rate:.1f} Mbit/s. Model: C + collectives × (α + β · bytes).", "", *rows]
