"""docs/troubleshooting.md has every message that the program can print, and none that it cannot.

The messages are read from the source by `ast`: what is given to the errors a user sees, to the log's warnings and to
standard error. A message is compared as a skeleton: its constant words, with `…` for each part that varies.

What is not plain text there is followed to where it is made: a local variable, what a list gets, a module's constant,
what a function of ours returns, and a parameter to the calls that give it. What cannot be followed: a text that is an
attribute of an object (the rules of DeepSpeed's settings), what a library says, and the words of a table or a summary
on standard output.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR2
from typing import TypeVar

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SECTION = "## Every message"
ERRORS = {
    "CellError",
    "ConfigError",
    "ConnectionError",
    "DataError",
    "HeldError",
    "Interrupted",
    "LostLockError",
    "LostWorkerError",
    "NonFiniteError",
    "OSError",
    "RuntimeError",
    "TypeError",
    "ValueError",
}
LEAST = 6  # letters of a message; what has fewer only joins parts that are messages
LEAST_PART = (16, 5)  # letters and words of a part of a message that is worth a line of its own
Function = ast.FunctionDef
N = TypeVar("N", bound=ast.AST)


class Source:
    """The parsed source, with what is needed to go from a name to what it stands for."""

    def __init__(self, files: dict[str, str]) -> None:
        self.trees = {name: ast.parse(text) for name, text in files.items()}
        self.file: dict[ast.AST, str] = {}
        self.inside: dict[ast.AST, Function | None] = {}
        self.functions: defaultdict[str, list[Function]] = defaultdict(list)
        self.constants: defaultdict[str, list[ast.expr]] = defaultdict(list)
        self.calls: defaultdict[str, list[ast.Call]] = defaultdict(list)
        self._nodes: dict[Function, list[ast.AST]] = {}
        for name, tree in self.trees.items():
            self._visit(tree, None, name)

    def _visit(self, node: ast.AST, function: Function | None, file: str) -> None:
        for child in ast.iter_child_nodes(node):
            self.inside[child], self.file[child] = function, file
            if isinstance(child, Function):
                self.functions[child.name].append(child)
            elif isinstance(child, ast.Call):
                self.calls[called(child)].append(child)
            elif (
                isinstance(child, ast.Assign)
                and isinstance(node, ast.Module)
                and isinstance(child.targets[0], ast.Name)
            ):
                self.constants[child.targets[0].id].append(child.value)
            self._visit(child, child if isinstance(child, Function) else function, file)

    def nearest(self, nodes: list[N], near: ast.AST) -> list[N]:
        """Those of the file that `near` is in, or all where it has none."""
        return [node for node in nodes if self.file.get(node) == self.file.get(near)] or nodes

    def nodes(self, function: Function) -> list[ast.AST]:
        """All nodes of a function, with those of the functions inside."""
        if function not in self._nodes:
            self._nodes[function] = list(ast.walk(function))
        return self._nodes[function]

    def walk(self, function: Function, *kinds: type[N]) -> Iterator[N]:
        """The function's own nodes of these kinds."""
        return (node for node in self.nodes(function) if isinstance(node, kinds) and self.inside.get(node) is function)


def called(call: ast.Call) -> str:
    """The last part of what is called."""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def names(node: ast.AST) -> set[str]:
    """The names in an assignment's target."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def letters(text: str) -> int:
    """How many of a text's characters are letters."""
    return sum(character.isalpha() for character in text)


def skeleton(text: str) -> str:
    """A message's constant words: white space collapsed, no varying part and no punctuation at its ends."""
    return re.sub(r"…(\s*…)+", "…", " ".join(text.split())).removeprefix("fptt-dist: ").strip("… .:,;")


def is_worth(text: str, *, part: bool = False) -> bool:
    """Whether a skeleton is a message, or a part of one, rather than what joins others."""
    most, words = LEAST_PART if part else (LEAST, 2)
    return letters(text) >= most and len(text.split()) >= words


def given(call: ast.Call) -> list[ast.expr]:
    """What of a call's arguments is for a user: the text first, then what the log puts into it."""
    on = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    match on, called(call):
        case "", name if name in ERRORS | {"Conflict"}:
            return call.args[:1]
        case "LOG" | "logging.getLogger('fptt_dist')", "warning":
            return call.args
        case ("warnings", "warn") | ("sys", "exit"):
            return call.args[:1]
        case "super()", "__init__" if call.args and isinstance(call.args[0], ast.JoinedStr):
            return call.args[:1]  # an error that writes its own text
        case ("typer", "echo") | ("", "print"):
            err = {word.arg: ast.unparse(word.value) for word in call.keywords}
            return call.args[:1] if err.get("err") == "True" or err.get("file") == "sys.stderr" else []
    return []


class Messages:
    """The skeletons of all messages of a source, each with one place that prints it."""

    def __init__(self, files: dict[str, str]) -> None:
        self.source = Source(files)
        self.found: dict[str, str] = {}
        self._known: dict[ast.expr, list[tuple[str, bool]]] = {}
        for name, tree in self.source.trees.items():
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                for number, argument in enumerate(given(call)):
                    for text, part in self.texts(argument, call):
                        if called(call) == "warning":
                            text = re.sub(r"%[-0-9.]*[a-z]", "…", text)
                        if is_worth(skeleton(text), part=part or number > 0):
                            self.found.setdefault(skeleton(text), f"{name}:{call.lineno}")

    def texts(self, node: ast.expr, at: ast.AST) -> list[tuple[str, bool]]:
        """What an expression may be, and whether each is but a part of a message."""
        if node not in self._known:
            self._known[node] = []  # while it is looked for: a circle adds nothing
            self._known[node] = self._texts(node, at)
        return self._known[node]

    def parts(self, nodes: list[ast.expr], at: ast.AST) -> list[tuple[str, bool]]:
        """What several expressions may be, as parts of a message."""
        return [(text, True) for node in nodes for text, _ in self.texts(node, at)]

    def _all(self, nodes: list[ast.expr], at: ast.AST) -> list[tuple[str, bool]]:
        return [text for node in nodes for text in self.texts(node, at)]

    def _texts(self, node: ast.expr, at: ast.AST) -> list[tuple[str, bool]]:
        match node:
            case ast.Constant(value=str(text)):
                return [(text, False)]
            case ast.JoinedStr(values=pieces):
                text = "".join(str(piece.value) if isinstance(piece, ast.Constant) else "…" for piece in pieces)
                follow = self.parts if letters(text) >= LEAST else self._all
                inner = follow([piece.value for piece in pieces if isinstance(piece, ast.FormattedValue)], at)
                return [(text, False), *inner]
            case ast.BinOp(op=ast.Add(), left=ast.Constant() | ast.JoinedStr(), right=right):
                return [(self._whole(node), False), *self.parts([right], at)]
            case ast.BinOp(left=left, right=right):
                whole = self._whole(node)
                return [(whole, False)] if letters(whole) >= LEAST else self.texts(left, at) + self.texts(right, at)
            case ast.IfExp(body=one, orelse=other):
                return self.texts(one, at) + self.texts(other, at)
            case ast.BoolOp(values=several) | ast.List(elts=several) | ast.Tuple(elts=several):
                return self._all(several, at)
            case ast.ListComp(elt=inner) | ast.GeneratorExp(elt=inner):
                return self.texts(inner, at)
            case ast.Starred(value=inner) | ast.Subscript(value=inner) | ast.NamedExpr(value=inner):
                return self.texts(inner, at)
            case ast.Call():
                return self._of_call(node, at)
            case ast.Name(id=name):
                return self._of_name(name, at)
        return []

    def _whole(self, node: ast.expr) -> str:
        """The text of a sum of texts, `…` for what is none."""
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=pieces):
                return "".join(str(piece.value) if isinstance(piece, ast.Constant) else "…" for piece in pieces)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._whole(left) + self._whole(right)
        return "…"

    def _of_call(self, call: ast.Call, at: ast.AST) -> list[tuple[str, bool]]:
        match call.func:
            case ast.Attribute(value=text, attr="format"):
                return [(re.sub(r"\{[^{}]*\}", "…", each), part) for each, part in self.texts(text, at)]
            case ast.Attribute(attr="join"):
                return self.texts(call.args[0], at)
            case ast.Attribute(value=text, attr="partition" | "rpartition" | "strip" | "splitlines"):
                return self.texts(text, at)
        if called(call) in ("str", "list", "sorted") and call.args:
            return self.texts(call.args[0], at)
        if called(call) in ERRORS:
            return []  # found by itself
        source, found = self.source, []
        for function in source.nearest(source.functions[called(call)], at):
            for node in source.walk(function, ast.Return, ast.Yield, ast.YieldFrom):
                if node.value is not None:
                    found += self.texts(node.value, node)
        return found

    def _of_name(self, name: str, at: ast.AST) -> list[tuple[str, bool]]:
        function = self.source.inside.get(at)
        while function is not None:
            found = self._in_function(name, function)
            if found or any(name == each.arg for each in (*function.args.args, *function.args.kwonlyargs)):
                return found + self._given_by_callers(name, function)
            function = self.source.inside.get(function)
        return [
            text for node in self.source.nearest(self.source.constants[name], at) for text in self.texts(node, node)
        ]

    def _in_function(self, name: str, function: Function) -> list[tuple[str, bool]]:
        """What a local name may hold."""
        found: list[tuple[str, bool]] = []
        for node in self.source.nodes(function):
            match node:
                case ast.Assign(targets=targets, value=value) if any(name in names(each) for each in targets):
                    found += self.texts(value, node)
                case (
                    ast.AnnAssign(target=target, value=ast.expr() as value)
                    | ast.AugAssign(target=target, value=value)
                    | ast.NamedExpr(target=target, value=value)
                    | ast.For(target=target, iter=value)
                    | ast.comprehension(target=target, iter=value)
                ) if name in names(target):
                    found += self.texts(value, node if isinstance(node, ast.stmt) else function.body[0])
                case ast.Call(func=ast.Attribute(value=ast.Name(id=own), attr="append" | "extend")) if own == name:
                    found += self.texts(node.args[0], node)
                case ast.Call(args=arguments):
                    found += self._added_by_callee(name, node, arguments)
        return found

    def _added_by_callee(self, name: str, call: ast.Call, arguments: list[ast.expr]) -> list[tuple[str, bool]]:
        """What a function of ours appends to a list that it is given as `name`."""
        found: list[tuple[str, bool]] = []
        for number, argument in enumerate(arguments):
            if not (isinstance(argument, ast.Name) and argument.id == name):
                continue
            for function in self.source.nearest(self.source.functions[called(call)], call):
                its = [each.arg for each in function.args.args]
                for node in self.source.walk(function, ast.Call):
                    match node.func:
                        case ast.Attribute(value=ast.Name(id=own), attr="append") if own in its[number : number + 1]:
                            found += self.texts(node.args[0], node)
        return found

    def _given_by_callers(self, name: str, function: Function) -> list[tuple[str, bool]]:
        found: list[tuple[str, bool]] = []
        its = [each.arg for each in function.args.args]
        for call in self.source.nearest(self.source.calls[function.name], function):
            values = [word.value for word in call.keywords if word.arg == name]
            number = its.index(name) - (its[0] in ("self", "cls")) if name in its else len(call.args)
            values += call.args[number : number + 1]
            found += [text for value in values for text in self.texts(value, call)]
        return found


def of_scripts(files: dict[str, str]) -> dict[str, str]:
    """The skeletons of what sbatch scripts print by their function `fail`."""
    found = {}
    for name, script in files.items():
        text = script.replace("\\\n", " ")
        variables = dict(re.findall(r'^(\w+)="([^"]*)"$', text, re.MULTILINE))
        for message in re.findall(r'\bfail (?:\d )?((?:"[^"]*"\s*)+)', text):
            words = re.sub(r'"\s*"', " ", message).strip().strip('"')
            for variable, value in variables.items():
                words = words.replace(f"${variable}", value)
            words = re.sub(r"\$\{[^}]*\}|\$\([^)]*\)|\$\w+", "…", words)
            if is_worth(skeleton(words)):
                found.setdefault(skeleton(words), name)
    return found


def of_page(text: str) -> list[tuple[str, str]]:
    """The skeletons of a page's messages, the first code of each point below the section, and what follows it."""
    points = re.findall(r"^- (`+)(.+?)\1[ \n](.*?)(?=^- |^#|\Z)", text.partition(SECTION)[2], re.MULTILINE | re.DOTALL)
    return [(skeleton(code), " ".join(said.split())) for _, code, said in points]


@cache
def in_source() -> dict[str, str]:
    """The skeletons of all messages, and where each is printed."""
    files = [path for folder in ("fptt_dist", "launchers") for path in (ROOT / folder).rglob("*.py")]
    own = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(files)}
    scripts = {
        path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "slurm").glob("*.sbatch"))
    }
    return Messages(own).found | of_scripts(scripts)


def test_every_message_is_explained_and_no_other() -> None:
    said = [text for text, _ in of_page(PAGE.read_text())]
    messages = in_source()
    missing = [f"{place}: add to {PAGE.name}\n- `{text}`" for text, place in messages.items() if text not in said]
    assert not missing, "\n".join(missing)
    gone = [text for text in said if text not in messages]
    assert not gone, "no longer in the source, take them out:\n" + "\n".join(gone)
    twice = {text for text in said if said.count(text) > 1}
    assert not twice


def test_every_explanation_says_something_of_its_own() -> None:
    words = re.compile(r"[a-z]{3,}")
    for message, said in of_page(PAGE.read_text()):
        own = set(words.findall(said.lower())) - set(words.findall(message.lower()))
        assert len(own) >= 3, f"{message}: {said!r} repeats the message"


def test_every_exit_code_is_in_the_table() -> None:
    table = re.findall(r"^\| (\d+) \| ", PAGE.read_text(), re.MULTILINE)
    assert [int(code) for code in table] == [0, 1, 2, 128 + SIGHUP, 128 + SIGINT, 128 + SIGUSR2, 128 + SIGTERM]


PROGRAMS = {
    "formatted": ('raise ConfigError(f"{key}={value}: type  {other} or\\nless")', {"=…: type … or less"}),
    "logged": ('LOG.warning("%s lasted %.1f s", name, seconds)', {"lasted … s"}),
    "constant": (
        'TEXT = "do not do {this} again"\nraise DataError(TEXT.format(this=1))',
        {"do not do … again"},
    ),
    "returned": (
        'raise ConfigError(said())\ndef said():\n    return "first reason" if x else "second reason"',
        {"first reason", "second reason"},
    ),
    "given by a caller": (
        'def fail(text):\n    raise ValueError(f"{name}: {text}")\nfail("what is wrong")',
        {"what is wrong"},
    ),
    "listed": (
        'def check():\n    problems = ["one of them"]\n    problems.append(f"another {kind} of them")\n'
        '    more(problems)\n    raise ConfigError("\\n".join(problems))\n'
        'def more(found):\n    found.append("the last of them")',
        {"one of them", "another … of them", "the last of them"},
    ),
    "walrus": (
        'def check():\n    if problem := refusal():\n        raise ConfigError(f"{key}: {problem}")\n'
        'def refusal():\n    return "too many of them"',
        {"too many of them"},
    ),
    "an error's own": (
        'class Lost(Exception):\n    def __init__(self):\n        super().__init__(f"rank {rank} is lost")',
        {"rank … is lost"},
    ),
    "standard error": (
        'print("fptt-dist: all is over", file=sys.stderr)\nprint("a table of results")\nLOG.info("not for users")',
        {"all is over"},
    ),
    "conflict": ('def f():\n    text = "a local text"\n    return [Conflict(text, ("key",))]', {"a local text"}),
}


@pytest.mark.parametrize(("program", "expected"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_messages_are_found_however_they_are_built(program: str, expected: set[str]) -> None:
    assert set(Messages({"program.py": program}).found) == expected


def test_messages_of_scripts_are_found() -> None:
    script = (
        'usage="type sbatch FILE"\nfail 2 "no job: $usage"\n'
        '[ -x "$it" ] || fail "$it on $(hostname) fails" \\\n    "badly"\n'
    )
    assert set(of_scripts({"job.sbatch": script})) == {"no job: type sbatch FILE", "on … fails badly"}


def test_the_page_is_read_as_it_is_written() -> None:
    page = (
        f"- `not this one`\n  x\n{SECTION}\n\n- `…: a {{choice}} of …`\n  Take one\n  of them.\n"
        "- ``say `data …``\n  Then.\n\n### More\n"
    )
    assert of_page(page) == [("a {choice} of", "Take one of them."), ("say `data", "Then.")]
