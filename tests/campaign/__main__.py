"""A campaign of faults: do tiny runs survive kills, damage, the machine's faults and hostile configurations?

    python -m tests.campaign FOLDER [--seed N]

The seed alone decides what is done: the same seed, the same cases. Results are kept in FOLDER/seed-N/results.jsonl, and
a case that has one is not run again: an interrupted campaign continues, and after a change of the program a new folder
is needed. Beside them is, for each case that failed, the folder it worked in. Exit code 1 if any failed.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import configurations, damage, kills, resources
from tests.campaign.case import Case

GROUPS = {"kills": kills, "damage": damage, "resources": resources, "configurations": configurations}
Result = dict[str, Any]


def plan(seed: int) -> dict[str, list[Case]]:
    """All cases of a seed, by their group."""
    return {group: list(module.cases(seed)) for group, module in GROUPS.items()}


def attempt(case: Case, place: Path, folder: Path) -> Result:
    """Run one case.

    Args:
        case: the case.
        place: its own folder, removed if it passes.
        folder: what all cases share.

    Returns:
        Its name, values, whether it passed, a note, and the seconds.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    began, trace = time.monotonic(), ""
    try:
        note, passed = case.check(case.values, place, folder), True
    except (Exception, pytest.fail.Exception) as error:
        note, passed, trace = str(error) or type(error).__name__, False, traceback.format_exc()
    result = {"case": case.name, "values": case.values, "passed": passed, "note": note}
    if passed:
        shutil.rmtree(place)
    else:
        (place / "why.txt").write_text(f"{case}\n\n{trace}")
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def line(case: Case, result: Result) -> str:
    """The row of a table that says how a case ended."""
    note = result["note"].strip().splitlines()[:1]
    end = f" ({note[0][:200]})" if note else ""
    return f"{'PASS' if result['passed'] else 'FAIL'}  {result['seconds']:5.1f} s  {case}{end}"


def summary(cases: dict[str, list[Case]], results: dict[str, Result]) -> str:
    """A table of the groups."""
    rows = [f"{'':<16}{'cases':>8}{'passed':>8}{'failed':>8}{'seconds':>9}"]
    for name, these in [*cases.items(), ("all", [case for group in cases.values() for case in group])]:
        of = [results[case.name] for case in these]
        passed = sum(result["passed"] for result in of)
        seconds = sum(result["seconds"] for result in of)
        rows.append(f"{name:<16}{len(of):>8}{passed:>8}{len(of) - passed:>8}{seconds:>9.0f}")
    return "\n".join(rows)


def kept(file: Path) -> dict[str, Result]:
    """The results of finished cases, by name; a line that a kill has cut is none."""
    text = file.read_text() if file.is_file() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    file.write_text("".join(lines))
    return {result["case"]: result for result in map(json.loads, lines)}


def run(cases: Iterable[Case], folder: Path) -> dict[str, Result]:
    """Run the cases that have no result yet, and print a line for each; the results of all, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.jsonl"
    results = kept(file)
    for case in cases:
        if case.name not in results:
            place = folder / "cases" / case.name.replace("/", "-").replace(" ", "-")
            results[case.name] = attempt(case, place, folder)
            with file.open("a") as out:
                out.write(json.dumps(results[case.name]) + "\n")
        print(line(case, results[case.name]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description="Do tiny runs survive kills, damage and hostile input?"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup every run would ignore it too
    cases = plan(arguments.seed)
    folder = arguments.folder.resolve() / f"seed-{arguments.seed}"
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"seed {arguments.seed}, {len(os.sched_getaffinity(0))} cores, load {load}", flush=True)
    results = run([case for group in cases.values() for case in group], folder)
    print(f"\n{summary(cases, results)}\nseed {arguments.seed}: {folder / 'results.jsonl'}")
    sys.exit(any(not results[case.name]["passed"] for group in cases.values() for case in group))


if __name__ == "__main__":
    main()
