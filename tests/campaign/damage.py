"""Random damage to a run's files: it resumes and ends as an undisturbed one, or is refused with one message."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.campaign.case import Case, drawer
from tests.campaign.runs import Run, assert_one_message, assert_undisturbed, ends, straight, texts

SHARED = ("task.safetensors", "sync.safetensors", "state.json")
WEIGHTS = ("model.safetensors", "optimizer.safetensors")
OWN = ("loss.safetensors", "random.safetensors", "sync.safetensors", "carried.safetensors", "state.json")
NEWEST: dict[str, list[str]] = {  # files of a checkpoint, by the kind of run
    "single": [*SHARED, *WEIGHTS, *(f"rank/0/{name}" for name in OWN)],
    "consensus": [*SHARED, *(f"rank/{rank}/{name}" for rank in range(2) for name in (*OWN, *WEIGHTS))],
}
SMALL = ("checkpoints/latest", "checkpoints/best", "versions.json", "config.yaml", "metrics.jsonl")
ACTIONS = ("flip", "cut", "zero", "remove", "swap")
COUNTS = {"single": 18, "consensus": 12}  # of the newest checkpoint
# Nothing says what a digit in a result was before a bit was flipped.
RESULTS = ("cut", "zero", "remove", "swap")


def cases(seed: int) -> Iterator[Case]:
    """The damage of a campaign: the newest checkpoint's files and manifest, then each small file."""
    for kind, count in COUNTS.items():
        for number in range(count):
            yield _case(seed, f"damage a checkpoint of {kind} {number + 1}", kind, _newest(NEWEST[kind]))
        yield _case(seed, f"damage a manifest of {kind}", kind, ["newest/manifest.json"])
    for file in SMALL:
        for number in range(2):
            yield _case(seed, f"damage {file} {number + 1}", "single", [file])
    for number in range(2):
        yield _case(seed, f"damage result.json {number + 1}", "single", ["result.json"], RESULTS, finished=True)
        yield _case(seed, f"damage a finished run {number + 1}", "single", _newest(NEWEST["single"]), finished=True)


def _newest(names: list[str]) -> list[str]:
    return [f"newest/{name}" for name in names]


def _case(
    seed: int, name: str, kind: str, files: list[str], actions: tuple[str, ...] = ACTIONS, *, finished: bool = False
) -> Case:
    draw = drawer(seed, name)
    file, action = draw.choice(files), draw.choice(actions)
    others = [each for each in (*_newest(NEWEST[kind]), "newest/manifest.json", *SMALL) if each != file]
    values: dict[str, Any] = {"kind": kind, "finished": finished, "file": file, "action": action}
    if action == "swap":
        values["other"] = draw.choice(others)
    elif action != "remove":
        values["at"] = round(draw.random(), 4)
    if action == "flip":
        values["bit"] = draw.randrange(8)
    return Case(name, values, damage)


def damage(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Damage a copy of a killed run, or of a finished one, and resume it."""
    kind = values["kind"]
    undisturbed = straight(folder, kind)
    original = undisturbed if values["finished"] else _killed(folder, kind)
    run = Run(place, kind)
    shutil.copytree(original, run.path, symlinks=True)
    harm(run.path, values)
    touched = {values["file"], values.get("other")}
    with run.started() as programs:
        codes = [program.end() for program in programs]
        if set(codes) == {2}:
            for program in programs:
                assert_one_message(program, [2])
        else:
            assert ends(programs) == [0] * run.workers, texts(programs)
            assert_undisturbed(run.path, undisturbed, metrics="metrics.jsonl" not in touched)
            return "resumed"
    # Nothing was written: as soon as the files are as they were, the run resumes.
    shutil.copytree(original, run.path, symlinks=True, dirs_exist_ok=True)
    run.finish()
    assert_undisturbed(run.path, undisturbed)
    return "refused"


def harm(run: Path, values: dict[str, Any]) -> None:
    """Damage a file of a run's folder, or two."""
    path = _path(run, values["file"])
    content = path.read_bytes()
    place = min(int(values.get("at", 0.0) * len(content)), len(content) - 1)
    if values["action"] == "flip":
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << values["bit"]]) + content[place + 1 :])
    elif values["action"] == "cut":
        path.write_bytes(content[:place])
    elif values["action"] == "zero":
        path.write_bytes(content[:place] + bytes(len(content) - place))
    elif values["action"] == "remove":
        path.unlink()
    else:
        other = _path(run, values["other"])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)


def _path(run: Path, name: str) -> Path:
    if name.startswith("newest/"):
        return max((run / "checkpoints").glob("step-*[0-9]")) / name.removeprefix("newest/")
    return run / name


def _killed(folder: Path, kind: str) -> Path:
    """The folder of a run that was killed after some checkpoints, trained once."""
    kept = folder / "killed" / kind.replace(" ", "-")
    if not kept.is_dir():
        place = kept.with_name(f"{kept.name}.now")
        shutil.rmtree(place, ignore_errors=True)
        run = Run(place, kind)
        with run.started() as programs:
            assert run.wait(programs, 11, 0.0), texts(programs)
            for program in programs:
                program.process.kill()
        for rest in (run.path / "checkpoints").glob("*.tmp"):  # of a save that was interrupted
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        os.replace(run.path, kept)
    return kept
