"""Mutation testing: what share of small faults in the source does some test catch?

    python -m tests.mutation FOLDER [--mutants FILE]

Four steps, each left out if its file is in FOLDER already, so that an interrupted run continues:

1. coverage, seconds.json: every test's lines and seconds, from one run of the tests under coverage.
2. mutants.json: per group of files COUNT lines, drawn from those the tests execute; on each line one of Cosmic Ray's
   mutants, drawn too. `--mutants` takes another run's, to compare two versions of the tests.
3. results.jsonl: per mutant the tests that execute its line, quickest first, stopped at the first failure or after
   LIMIT seconds. A survivor runs a second time.
4. table.md: caught and survived by file.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SEED, COUNT, LIMIT = 20261129, 50, 120.0
FIRST = 25  # tests that are tried before the others are even collected
ORIGINAL = "original.json"  # the file under trial as it was
BROKEN = 97  # a fork's exit code where pytest itself did not work
GROUPS = {
    "algorithm": [f"fptt_dist/algorithm/{name}.py" for name in ("update", "fptt", "windows", "losses", "stability")],
    "synchronization": [
        f"fptt_dist/parallel/{name}.py"
        for name in (
            *("sync/averaged_dual", "sync/periodic", "sync/admm_dual", "sync/gradient", "sync/flat_buffer"),
            "comm/hierarchical",
        )
    ],
    "training": sorted(str(path.relative_to(ROOT)) for path in (ROOT / "fptt_dist/training").rglob("*.py")),
}
# Of Cosmic Ray's 213 operators those that make a plausible fault; adding to a string or a shift of floats is none.
OPERATORS = re.compile(
    r"core/(ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul|FloorDiv_Div|Mod_FloorDiv|FloorDiv_Mul"
    r"|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_Gt|LtE_Lt|LtE_Gt|Gt_GtE|Gt_Lt|GtE_Gt|GtE_Lt|Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_(USub_UAdd|Delete_USub|Delete_Not)|AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    r"|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ExceptionReplacer"
    r"|NumberReplacer|RemoveDecorator|ZeroIterationForLoop)"
)
FOLDERS = [f"tests/{name}" for name in ("algorithm", "models", "parallel", "sharded", "training")]
Mutant = dict[str, Any]


def measure(folder: Path) -> None:
    """Run the tests under coverage, with a context for each test."""
    settings = folder / "coverage.ini"
    settings.write_text(
        "[run]\nsource_pkgs = fptt_dist\nparallel = true\npatch = subprocess, fork, _exit\nsigterm = true\n"
        f"data_file = {folder / 'parts' / 'coverage'}\ncontext = ${{MUTATION_TEST-}}\n"
        "disable_warnings = no-data-collected, module-not-measured, couldnt-parse, already-imported\n"
    )
    shutil.rmtree(folder / "parts", ignore_errors=True)
    (folder / "parts").mkdir()
    environment = {**os.environ, "MUTATION_TIMES": str(folder / "seconds.json")}
    coverage = [sys.executable, "-m", "coverage"]
    tests = ["-m", "pytest", "-q", "-p", "tests.mutation.contexts", "-m", "not slow and not gpu", *FOLDERS]
    subprocess.run([*coverage, "run", f"--rcfile={settings}", *tests], cwd=ROOT, env=environment, check=False)
    combine = [*coverage, "combine", "--keep", "-q", f"--data-file={folder / 'coverage'}", str(folder / "parts")]
    subprocess.run(combine, cwd=ROOT, check=True)


def contexts(folder: Path, file: str) -> dict[int, set[str]]:
    """Return the tests that execute each line of a file."""
    from coverage import CoverageData

    data = CoverageData(basename=str(folder / "coverage"))
    data.read()
    measured = [name for name in data.measured_files() if name.endswith("/" + file)]
    lines: dict[int, set[str]] = {}
    for name in measured:
        for line, names in data.contexts_by_lineno(name).items():
            tests = {re.split(r"\|(?=tests/)", each)[-1].strip("|") for each in names}
            lines.setdefault(line, set()).update(test for test in tests if test.startswith(tuple(FOLDERS)))
    return lines


def mutants_of(file: str) -> Iterator[Mutant]:
    """Every mutant of a file: the operator, its occurrence and the line."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    tree = get_ast((ROOT / file).read_text())
    for name in sorted(filter(OPERATORS.fullmatch, operator_names())):
        operator, occurrence = get_operator(name)(), 0
        for node in ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                yield {"file": file, "line": start[0], "operator": name, "occurrence": occurrence}
                occurrence += 1


def sample(folder: Path) -> list[Mutant]:
    """Draw COUNT lines of each group, and one mutant of each line."""
    draw = random.Random(SEED)
    drawn: list[Mutant] = []
    for group, files in GROUPS.items():
        by_line: dict[tuple[str, int], list[Mutant]] = {}
        for file in files:
            executed = contexts(folder, file)
            for mutant in mutants_of(file):
                if executed.get(mutant["line"]):
                    by_line.setdefault((file, mutant["line"]), []).append(mutant)
        lines = sorted(draw.sample(sorted(by_line), COUNT))
        for line in lines:
            shuffled = draw.sample(by_line[line], len(by_line[line]))
            drawn += [{"group": group, **mutant} for mutant in list(filter(compiles, shuffled))[:1]]
    return drawn


def compiles(mutant: Mutant) -> bool:
    """Return whether a mutant is Python, which one of a starred argument is not."""
    try:
        compile(mutated(mutant), mutant["file"], "exec")
    except SyntaxError:
        return False
    return True


def mutated(mutant: Mutant) -> str:
    """The mutant's file with its fault."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / mutant["file"]).read_text()
    changed = mutate_code(source, get_operator(mutant["operator"])(), mutant["occurrence"])
    assert changed is not None
    assert changed != source, mutant
    return changed


class Order:
    """A pytest plugin that keeps the given tests, in their order, and notes the one that fails."""

    def __init__(self, tests: list[str], note: Path) -> None:
        self.rank = {test: number for number, test in enumerate(tests)}
        self.note = note

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        left_out = [item for item in items if item.nodeid not in self.rank]
        items[:] = sorted((item for item in items if item.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])
        config.hook.pytest_deselected(items=left_out)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.note.write_text(json.dumps({"failed": report.nodeid}))


def attempt(folder: Path, tests: list[str]) -> dict[str, Any]:
    """Run tests on the source as it is now, in a fork of this process, which has imported torch but not fptt_dist."""
    import pytest

    note, log = folder / "note.json", folder / "log.txt"
    note.write_text("{}")
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        files = sorted({test.split("::")[0] for test in tests})
        status = BROKEN
        try:
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files], plugins=[Order(tests, note)]))
        finally:
            os._exit(status)
    status = None
    while status is None and time.monotonic() - start < LIMIT:
        done, how = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(how) if done else None
        time.sleep(0.05)
    last = json.loads(note.read_text() or "{}")
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
        # Not taken for caught, although a test may hang: it may also just be slow on this machine.
        return {"caught": False, "by": f"after {LIMIT:g} s"}
    if status == 0:
        return {"caught": False, "by": ""}
    if "failed" not in last and "ERROR collecting" not in log.read_text():
        raise RuntimeError(f"the tests did not run: {log.read_text()}")
    return {"caught": True, "by": last.get("failed", "collection")}


def name_of(mutant: Mutant) -> str:
    return "{file}:{line} {operator} {occurrence}".format(**mutant)


def results_of(folder: Path) -> dict[str, Mutant]:
    """Return the last result of each mutant."""
    path = folder / "results.jsonl"
    read = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {name_of(result): result for result in read}


def run(folder: Path, drawn: list[Mutant], known: dict[str, Mutant]) -> None:
    """Try every mutant that has no result yet, then the survivors once more."""
    import torch.distributed
    import torch.utils.data  # noqa: F401 - here, so that no fork has to import it

    seconds: dict[str, float] = json.loads((folder / "seconds.json").read_text())
    lines = {file: contexts(folder, file) for file in {mutant["file"] for mutant in drawn}}
    for attempt_number in (1, 2):
        done = results_of(folder)
        for mutant in drawn:
            before = done.get(name_of(mutant))
            if before and (before["caught"] or before["attempt"] >= attempt_number):
                continue
            holding = lines[mutant["file"]].get(mutant["line"], set())
            tests = sorted(holding & seconds.keys(), key=seconds.__getitem__)
            total, chosen = 0.0, []
            for test in tests:
                total += seconds[test]
                if total > LIMIT:
                    break
                chosen.append(test)
            first = known.get(name_of(mutant), {}).get("by")
            chosen.sort(key=lambda test: test != first)
            result = {**mutant, "attempt": attempt_number, "tests": len(chosen), "of": len(tests)}
            result |= try_mutant(folder, mutant, chosen)
            with (folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
            word = "caught" if result["caught"] else "survived"
            print(f"{word} {name_of(mutant)} {result['fault']} {result['by']}", flush=True)


def try_mutant(folder: Path, mutant: Mutant, tests: list[str]) -> dict[str, Any]:
    """Put the fault into the source, run the tests, and take it out again."""
    path = ROOT / mutant["file"]
    source, changed, start = path.read_text(), mutated(mutant), time.monotonic()
    lines = zip(source.splitlines(), changed.splitlines(), strict=False)
    fault = next(f"{old.strip()} -> {new.strip()}" for old, new in lines if old != new)
    compiled = list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))
    outcome: dict[str, Any] = {"caught": False, "by": ""}
    (folder / ORIGINAL).write_text(json.dumps([mutant["file"], source]))
    try:
        path.write_text(changed)
        for each in compiled:  # an equal size in the same second would pass as the old source
            each.unlink(missing_ok=True)
        for part in (tests[:FIRST], tests[FIRST:]):  # few files are collected quickly
            if part and not outcome["caught"]:
                outcome = attempt(folder, part)
    finally:
        path.write_text(source)
        (folder / ORIGINAL).unlink()
    return {**outcome, "fault": fault, "took": round(time.monotonic() - start, 1)}


def table(folder: Path) -> str:
    """Caught and survived by file, as Markdown."""
    results = list(results_of(folder).values())
    rows = ["| file | mutants | caught | survived |", "|---|---:|---:|---:|"]
    for file in [*sorted({result["file"] for result in results}), ""]:
        of = [result for result in results if result["file"] == file or not file]
        caught = sum(result["caught"] for result in of)
        rows.append(f"| {file or 'all'} | {len(of)} | {caught} | {len(of) - caught} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description="What share of small faults does some test catch?"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutants", type=Path, help="another run's mutants.json")
    parser.add_argument("--known", type=Path, help="another run's folder: the test that caught a mutant is tried first")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Told to stop, it takes the fault out of the source again; killed, it does so at the next start.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("stopped; start again to continue"))
    original = folder / ORIGINAL
    if original.exists():
        path, source = json.loads(original.read_text())
        (ROOT / path).write_text(source)
        original.unlink()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    if not (folder / "coverage").exists():
        measure(folder)
    mutants = arguments.mutants or folder / "mutants.json"
    if not mutants.exists():
        mutants.write_text(json.dumps(sample(folder), indent=1))
    run(folder, json.loads(mutants.read_text()), results_of(arguments.known) if arguments.known else {})
    (folder / "table.md").write_text(table(folder))


if __name__ == "__main__":
    main()
