"""SIGKILL at random moments, of all workers, of one, of a launcher: the resumed run ends as an undisturbed one."""

import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.case import Case, drawer
from tests.campaign.runs import BATCHES, Run, assert_one_message, assert_undisturbed, children_of, kill, straight

ALL = {"single": 8, "data parallel": 3, "consensus": 3, "consensus inside a sync interval": 4, "fsdp": 3}
ONE = {"data parallel": 2, "consensus": 2, "consensus inside a sync interval": 2, "fsdp": 2}
LAUNCHED = ("consensus inside a sync interval", "fsdp")
LATEST = BATCHES - 5  # batch after which a run is still disturbed
MILLISECONDS = 100.0  # after a batch was recorded: the next ones, saves and validations are done in them


def cases(seed: int) -> Iterator[Case]:
    """The kills of a campaign."""
    for kind, count in ALL.items():
        for number in range(count):
            name = f"kill all of {kind} {number + 1}"
            draw = drawer(seed, name)
            lives = _moments(draw, draw.randint(1, 3), first=0)
            yield Case(name, {"kind": kind, "lives": lives, "asynchronous": draw.random() < 0.5}, kill_all)
    for kind, count in ONE.items():
        for number in range(count):
            name = f"kill one of two of {kind} {number + 1}"
            draw = drawer(seed, name)
            values = {"kind": kind, "lives": _moments(draw, 1, first=2), "rank": draw.randrange(2)}
            yield Case(name, {**values, "asynchronous": draw.random() < 0.5}, kill_one)
    for kind in LAUNCHED:
        name = f"kill a launcher's workers of {kind}"
        draw = drawer(seed, name)
        values = {"kind": kind, "lives": _moments(draw, 2, first=2), "ranks": [draw.randrange(2) for _ in range(2)]}
        yield Case(name, values, kill_restarted)
    name = "kill the launcher"
    draw = drawer(seed, name)
    yield Case(name, {"kind": draw.choice(LAUNCHED), "lives": _moments(draw, 1, first=2)}, kill_launcher)


def _moments(draw: Random, count: int, *, first: int) -> list[tuple[int, float]]:
    """Batches in their order, and milliseconds after each."""
    batches = sorted(draw.sample(range(first, LATEST), count))
    return [(batch, round(draw.uniform(0.0, MILLISECONDS), 1)) for batch in batches]


def kill_all(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Kill all workers at once, once per life."""
    undisturbed = straight(folder, values["kind"])
    run = Run(place, values["kind"], {"checkpoint.async_save": values["asynchronous"]})
    killed = 0
    for batch, milliseconds in values["lives"]:
        with run.started() as programs:
            killed += run.wait(programs, batch, milliseconds)
            for program in programs:
                program.process.kill()
    run.finish()
    assert_undisturbed(run.path, undisturbed)
    return f"{killed} of {len(values['lives'])} in time"


def kill_one(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Kill one of two workers; the other one says so and ends."""
    undisturbed = straight(folder, values["kind"])
    run = Run(place, values["kind"], {"checkpoint.async_save": values["asynchronous"]})
    with run.started() as programs:
        ((batch, milliseconds),) = values["lives"]
        in_time = run.wait(programs, batch, milliseconds)
        programs[values["rank"]].process.kill()
        if in_time:
            assert_one_message(programs[1 - values["rank"]], [1])
    run.finish()
    assert_undisturbed(run.path, undisturbed)
    return "in time" if in_time else "too late"


def kill_restarted(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Kill a worker per life under `launch --max-restarts`, which starts all again."""
    undisturbed = straight(folder, values["kind"])
    run = Run(place, values["kind"])
    killed = 0
    with run.launched("--max-restarts", str(len(values["lives"]))) as agent:
        before: set[int] = set()
        for (batch, milliseconds), rank in zip(values["lives"], values["ranks"], strict=True):
            if not run.wait([agent], batch, milliseconds):
                break
            workers = [child for child in children_of(agent.process.pid) if child not in before]
            if len(workers) == run.workers:
                kill(workers[rank])
                killed += 1
                before.update(workers)
        assert agent.end() == 0, agent.text()
        assert "Traceback" not in agent.text(), agent.text()
    assert_undisturbed(run.path, undisturbed)
    return f"{killed} of {len(values['lives'])} in time"


def kill_launcher(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Kill the agent: its workers save and end, and a new one resumes."""
    undisturbed = straight(folder, values["kind"])
    run = Run(place, values["kind"])
    with run.launched() as agent:
        ((batch, milliseconds),) = values["lives"]
        in_time = run.wait([agent], batch, milliseconds)
        workers = children_of(agent.process.pid)
        agent.process.send_signal(signal.SIGKILL)
        agent.end()
        run.gone(workers)
    with run.launched() as agent:
        assert agent.end() == 0, agent.text()
    assert_undisturbed(run.path, undisturbed)
    return "in time" if in_time else "too late"
