"""Text of values and of their allowed ranges, for messages, help and overrides."""

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fptt_dist.config.loading.yaml import kind_of

_NAMES = {bool: "true or false", int: "int", float: "float", str: "text"}
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def show(value: Any) -> str:
    """`value` as one line of YAML 1.2, as a user would type it."""
    if isinstance(value, str):
        bare = re.fullmatch(r"[\w./+-]+", value, re.ASCII) and not value.startswith("-") and kind_of(value) == "str"
        quoted = json.dumps(value, ensure_ascii=False)
        return value if bare else _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(show(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value) if isinstance(value, int | float) else repr(value)  # an object of a program's, by its type


def allowed(field: FieldInfo) -> str:
    """The type and range of a key that holds a value, in words: "int >= 1 or null", "one of adam, sgd"."""
    return _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, marks: list[Any]) -> str:
    """The words for a type and the marks (bounds) that go with it."""
    args = get_args(annotation)
    if get_origin(annotation) is Annotated:
        extra = [mark for info in args[1:] for mark in (info.metadata if isinstance(info, FieldInfo) else [info])]
        return _allowed(args[0], [*marks, *extra])
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(args)}"
    if get_origin(annotation) is tuple:
        size = "one or more" if args[-1] is Ellipsis else str(len(args))
        return f"list of {size}: {_allowed(args[0], [])}"
    if get_origin(annotation) is dict:
        return "keys with their values"
    if type(None) in args:
        return f"{_allowed(args[0], marks)} or null"
    if any(getattr(mark, "pattern", None) for mark in marks):
        return "PATH.py:CLASS"
    bounds = [
        f"{sign} {getattr(mark, name)}"
        for mark in marks
        for name, sign in _BOUNDS
        if getattr(mark, name, None) is not None
    ]
    return " ".join([_NAMES[annotation], " and ".join(bounds)]).strip()
