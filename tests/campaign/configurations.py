"""Configurations that nobody would write: each is refused with one message and exit code 2, in seconds."""

import json
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from fptt_dist.config.describe import describe
from tests.campaign.case import Case
from tests.campaign.runs import assert_one_message, environment, stop
from tests.program import Program

SECONDS = 5  # of the processor: how long a busy machine takes says nothing
WAIT = 60.0  # seconds for what waits without computing, such as for a pipe
MEMORY = 2**33  # bytes of address space: what asks for more must not get the machine's
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e]")
BASE = (
    "extends: add_task\n"
    "device: cpu\n"
    "task: {length: 20, examples: 32, validation: 8, test: 8}\n"
    "model: {hidden: 4}\n"
    "train: {batch_size: 8}\n"
)
OVER_BASE = "extends: base.yaml\n"
SIGNS = "[]{}:,#&*!|>'\"%@`-? \t\n\0\x1b\x7f\x85\u2028\u202e\ufeffeé文𝄞0.~"
VARIANTS = (None, "adding", "lstm", "adam")
COUNTED = ("_batches", "_epochs", "keep_last", "every_batches")  # keys of which any number is allowed
VALUES = (
    *("[]", "{}", '""', "-1", "0", "1e400", ".nan", "-.inf", "true", "null", "[1, [2]]", "1000000000000"),
    "x" * 5000,
)
TAGS = ("!!python/object/apply:os.system [ls]", "!!python/name:os.system", "!!binary aGk=", "!own 1", "!!set {a}")


def _deep(draw: Random) -> str:
    count = draw.choice([51, 200, 2_000, 20_000])
    opening, closing = draw.choice([("[", "]"), ("{a: ", "}"), ("[{b: ", "}]")])
    nested = opening * count + "1" + closing * count * draw.randrange(2)
    block = "".join(f"{' ' * depth}a:\n" for depth in range(min(count, 500)))
    return draw.choice([f"task: {nested}\n", nested, block])


def _aliases(draw: Random) -> str:
    depth, width = draw.randint(8, 40), draw.randint(4, 12)
    lines = [f"a0: &a0 {draw.choice(['[x, x, x, x]', '{a: 1, b: 2}'])}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(lines) + f"\ntask: *a{depth - 1}\n"


def _circle(draw: Random) -> str:
    circles = ["task: &t {name: *t}", "task: &t [*t, *t]", "extends: config.yaml", "a: &a [&b [*a, *b]]"]
    return draw.choice(circles) + "\n"


def _nul(draw: Random) -> str:
    text = draw.choice(["a\0b", r'"a\0b"', r'"\0"'])
    return draw.choice(["run: {dir: %s}", "task: {name: %s}", "data: {root: %s}", "extends: %s", "%s: 1"]) % text


def _huge(draw: Random) -> str:
    whole = sorted(name for name, kind in _keys().items() if kind.startswith("int") and not name.endswith(COUNTED))
    long = [str(10 ** draw.randint(19, 400)), f"-{10 ** draw.randint(0, 400)}", "9" * 100_000, "1e400", "0x" + "f" * 99]
    return OVER_BASE + _set(draw.choice(whole), draw.choice(long))


def _control(draw: Random) -> str:
    name = "".join(draw.choice([r"\e[2J", r"\a", r"\r", r"\x7F", r"\u202E", r"\b", "x"]) for _ in range(8))
    return draw.choice(['"%s": 1', 'task: {"%s": 1}', 'algorithm: "%s"', 'extends: "%s"', 'task: {name: "%s"}']) % name


def _bytes(draw: Random) -> bytes:
    return draw.choice([draw.randbytes(draw.randint(1, 4000)), "\ufeffseed: 1\n".encode("utf-16-le"), b"a: \xc3("])


def _large(draw: Random) -> str:
    count = draw.choice([2**18, 2**20, 10 * 2**20])
    return draw.choice(["seed: 1 # " + "x" * count, "- 1\n" * (count // 4 + 1), f"algorithm: {'x' * count}\n"])


def _tag(draw: Random) -> str:
    return f"{draw.choice(['seed', 'task', 'algorithm'])}: {draw.choice(TAGS)}\n"


def _twice(draw: Random) -> str:
    texts = ["seed: 1\nseed: 2\n", "task: {length: 1, length: 1}\n", "? [a, b]\n: 1\n", "1: 2\n", "null: 1\n"]
    return draw.choice(texts)


def _noise(draw: Random) -> str:
    """A configuration with a few characters put in, which may still be one."""
    text = list(BASE)
    for _ in range(draw.randint(1, 8)):
        text.insert(draw.randrange(len(text) + 1), draw.choice(SIGNS))
    return "".join(text)


def _value(draw: Random) -> str:
    """A configuration with one key set to something that may be allowed."""
    return OVER_BASE + _set(draw.choice(sorted(_keys())), draw.choice(VALUES))


def _keys() -> dict[str, str]:
    """The type, in words, of each key that a run like `BASE` has."""
    return {key.name: key.type for key in describe() if key.variant in VARIANTS and key.name != "run.dir"}


def _set(key: str, value: str) -> str:
    *sections, name = key.split(".")
    return "".join(f"{section}: {{" for section in sections) + f"{name}: {value}" + "}" * len(sections) + "\n"


TEXTS: dict[str, tuple[int, Callable[[Random], str | bytes]]] = {  # how many, and what
    "deep": (4, _deep),
    "aliases": (3, _aliases),
    "circle": (2, _circle),
    "NUL": (3, _nul),
    "huge number": (8, _huge),
    "control characters": (3, _control),
    "bytes": (3, _bytes),
    "large": (3, _large),
    "tag": (2, _tag),
    "twice": (2, _twice),
    "noise": (10, _noise),
    "value": (16, _value),
}
PERHAPS = ("noise", "value")  # what these draw may be a configuration
FILES = ("fifo", "/dev/zero", "/dev/random", "folder")


def cases(seed: int) -> Iterator[Case]:
    """The configurations of a campaign; a text is drawn from the seed of its own that the case holds."""
    for kind, (count, _) in TEXTS.items():
        for number in range(1, count + 1):
            name = f"configuration: {kind} {number}"
            yield Case(name, {"kind": kind, "seed": f"{seed} {name}"}, refuse_text)
    for file in FILES:
        for extended in (False, True):
            name = f"configuration: {'extends ' if extended else ''}{file}"
            yield Case(name, {"file": file, "extended": extended}, refuse_file)


def refuse_text(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Try a text out."""
    kind = values["kind"]
    (place / "base.yaml").write_text(BASE)
    text = TEXTS[kind][1](Random(values["seed"]))
    config = place / "config.yaml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return _refused(config, place, may_be_allowed=kind in PERHAPS)


def refuse_file(values: dict[str, Any], place: Path, folder: Path) -> str:
    """Try out, or extend, what is no regular file."""
    config, file = place / "config.yaml", place / "file"
    if values["file"] == "fifo":
        os.mkfifo(file)
    elif values["file"] == "folder":
        file.mkdir()
    else:
        file.symlink_to(values["file"])
    config.write_text(f"extends: {json.dumps(str(file))}\n")
    return _refused(config if values["extended"] else file, place)


def _refused(config: Path, place: Path, *, may_be_allowed: bool = False) -> str:
    words = ["-m", "fptt_dist", "train", "--dry-run", str(config)]
    program = Program(place / "log", words, environment(), forked=True)
    try:
        pid = program.process.pid
        resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.prlimit(pid, resource.RLIMIT_CPU, (SECONDS, SECONDS))
        code = program.end(WAIT)
    finally:
        stop([program])
    if not (may_be_allowed and code == 0):
        assert code not in (-signal.SIGXCPU, -signal.SIGKILL), f"it took more than {SECONDS} s"
        assert_one_message(program, [2])
    assert not CONTROL.search(program.text()), f"control characters: {program.text()!r}"
    return "allowed" if code == 0 else ""
