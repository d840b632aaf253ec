"""The page of every subcommand with its arguments, options and help, generated from the program."""

import inspect
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from fptt_dist.cli import app

HEAD = """# Commands

Every subcommand of `fptt-dist` with its arguments and options. `fptt-dist SUBCOMMAND --help` prints the same, and
`python -m fptt_dist` is the same program. `[KEY=VALUE]…` are
[configuration keys](configuration.md), as many as you like.

Exit codes: 0 done, 1 failure, 2 bad usage or configuration, 130 / 140 / 143 stopped by SIGINT / SIGUSR2 / SIGTERM after
saving.
"""


def commands_page() -> str:
    """Return Markdown with a section for each subcommand."""
    parts = [HEAD]
    for name, callback in subcommands(app, ""):
        arguments, options = _parameters(callback)
        usage = " ".join(["fptt-dist", name, *(["[OPTIONS]"] if options else []), *(typed for typed, *_ in arguments)])
        link_id = name.replace(" ", "-")
        parts.append(f"\n## fptt-dist {name} {{ #{link_id} }}\n\n```text\n{usage}\n```\n")
        parts.append(f"{_cell(inspect.cleandoc(callback.__doc__ or ''))}\n")
        rows = [f"| `{typed}` | {_cell(meaning)} | {default} |" for typed, meaning, default in (*arguments, *options)]
        if rows:
            parts += ["", "| argument or option | meaning | default |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def subcommands(program: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every subcommand, such as "data fetch", with the function that it calls."""
    for command in program.registered_commands:
        if command.callback is not None:
            yield f"{prefix}{command.name or command.callback.__name__}", command.callback
    for group in program.registered_groups:
        if group.typer_instance is not None:
            yield from subcommands(group.typer_instance, f"{prefix}{group.name} ")


Row = tuple[str, str, str]


def _parameters(callback: Callable[..., Any]) -> tuple[list[Row], list[Row]]:
    """Return the arguments and the options of a subcommand: each as typed, its meaning and its default."""
    arguments: list[Row] = []
    options: list[Row] = []
    hints = get_type_hints(callback, include_extras=True)
    for name, parameter in inspect.signature(callback).parameters.items():
        kind, info = get_args(hints[name])
        default = "required" if parameter.default is inspect.Parameter.empty else _default(parameter.default)
        if isinstance(info, ArgumentInfo):
            arguments.append((info.metavar or name.upper(), info.help or "", default))
        elif isinstance(info, OptionInfo):
            typed = ", ".join(info.param_decls or (f"--{name.replace('_', '-')}",))
            meaning = info.help or ""
            if info.envvar:
                meaning += f"; or in the environment variable {info.envvar}"
            if kind is not bool:
                typed += f" {info.metavar or _words(kind)}"
            options.append((typed, meaning, default))
    return arguments, options


def _default(value: Any) -> str:
    return "" if value is None or value is False else f"`{value}`"


def _words(kind: Any) -> str:
    """Return the placeholder of an option's value: its type, or its choices."""
    if get_origin(kind) is Literal:
        return "/".join(map(str, get_args(kind)))
    if isinstance(kind, UnionType):
        return _words(next(member for member in get_args(kind) if member is not NoneType))
    if get_origin(kind) is list:
        return _words(get_args(kind)[0])
    name = str(kind.__name__)
    return {"str": "TEXT", "int": "NUMBER", "float": "NUMBER"}.get(name, name.upper())


def _cell(text: str) -> str:
    """Return `text` escaped for a Markdown table cell."""
    for sign, entity in (("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("*", "&#42;"), ("_", "&#95;")):
        text = text.replace(sign, entity)
    return text
