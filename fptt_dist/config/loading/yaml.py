"""YAML 1.2 text to plain Python values and the line of every key."""

import re
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.schema.section import KeyPath

_PREFIX = "tag:yaml.org,2002:"
_PLAIN = {
    "null": re.compile(r"null|Null|NULL|~|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
}

MAX_DEPTH = 50
MAX_EXPANDED = 2**20
"""Characters and values of a text, with every alias written out: a few aliases of aliases may stand for billions."""

_TOO_DEEP = f"not a configuration: its values are nested more than {MAX_DEPTH} deep"


def kind_of(text: str) -> str:
    """The type of an unquoted scalar in the core schema of YAML 1.2: null, bool, int, float or str."""
    return next((kind for kind, pattern in _PLAIN.items() if pattern.fullmatch(text)), "str")


class _CoreResolver(VersionedResolver):
    """Types unquoted scalars by the core schema alone, also below a `%YAML 1.1` line."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node that names none."""
        if kind is ScalarNode and implicit[0]:
            return Tag(suffix=_PREFIX + kind_of(value))
        return super().resolve(kind, value, (False, True))


def parse(text: str, at: Callable[[int], str]) -> tuple[Any, dict[KeyPath, int]]:
    """The value `text` holds (None when it is empty) and the line, from 1, of every key of its mappings.

    `at` names a line of the text for messages. Raises ConfigError for what is not YAML, a key given twice, a key that
    is not text, an alias to its own parent, a tag other than the core schema's, values nested deeper than `MAX_DEPTH`
    and aliases that stand for more than `MAX_EXPANDED`.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.Resolver = _CoreResolver
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{at(line)}: not YAML: {error.problem}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{at(line)}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{at(1)}: {_TOO_DEEP}") from error
    reader = _Reader(at)
    return (None if root is None else reader.value(root, ())), reader.lines


class _Reader:
    """Converts the nodes of one text, and notes the lines of keys on the way."""

    def __init__(self, at: Callable[[int], str]) -> None:
        """`at` names a line of the text for messages."""
        self.lines: dict[KeyPath, int] = {}
        self._at = at
        self._open: list[Any] = []
        self._expanded = 0

    def value(self, node: Any, path: KeyPath) -> Any:
        """The plain Python value of `node`, which sits at `path`."""
        if any(node is parent for parent in self._open):
            raise self._error(node, f"the alias *{node.anchor} stands inside what it repeats")
        self._expanded += 1 + (len(node.value) if isinstance(node, ScalarNode) else 0)
        if len(self._open) >= MAX_DEPTH:
            raise self._error(node, _TOO_DEEP)
        if self._expanded > MAX_EXPANDED:
            raise self._error(node, "its aliases stand for more than a configuration holds: write out what is meant")
        self._open.append(node)
        try:
            if isinstance(node, MappingNode) and node.tag == _PREFIX + "map":
                return self._mapping(node, path)
            if isinstance(node, SequenceNode) and node.tag == _PREFIX + "seq":
                return [self.value(item, path) for item in node.value]
            if isinstance(node, ScalarNode):
                return self._scalar(node)
            raise self._error(node, f"the tag {node.tag} is not allowed: write the value alone")
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        """The plain mapping of `node`."""
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, path)
            if not isinstance(key, str):
                raise self._error(key_node, f"the key {key!r} is not text")
            here = (*path, key)
            if key in values:
                raise self._error(
                    key_node, f"the key {'.'.join(here)} is given twice, first on line {self.lines[here]}"
                )
            self.lines[here] = key_node.start_mark.line + 1
            values[key] = self.value(value_node, here)
        return values

    def _scalar(self, node: ScalarNode) -> Any:
        """The plain value of one scalar, by its tag."""
        kind = str(node.tag).removeprefix(_PREFIX)
        text: str = node.value
        if kind == "str":
            return text
        if kind not in _PLAIN:
            raise self._error(node, f"the tag {node.tag} is not allowed: write the value alone")
        if not _PLAIN[kind].fullmatch(text):
            raise self._error(node, f"{text!r} is no {kind}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".n", "n"))
        try:
            number = int(text, 0 if text[:2] in ("0o", "0x") else 10)
        except ValueError:  # Python refuses numbers of thousands of digits
            number = 2**64
        if not -(2**63) <= number < 2**63:
            raise self._error(node, f"a whole number of {len(text)} digits is too long")
        return number

    def _error(self, node: Any, text: str) -> ConfigError:
        """An error with the place of `node`."""
        return ConfigError(f"{self._at(node.start_mark.line + 1)}: {text}")
