"""The page of every key that can be set, written from the schema."""

from itertools import groupby

from fptt_dist.config import Config, Key, describe
from fptt_dist.config.section import choice_of

HEAD = """# Configuration

Every key that a configuration file or the command line can set, by section. `fptt-dist config keys fptt` prints a
section, `fptt-dist config show CONFIG` a configuration with all defaults. A file says what differs from them:

```yaml
extends: add_task.yaml     # a file beside this one, or a packaged name; of a list, a later one wins
optimizer: {name: adamw, lr: 2e-3}
fptt:
  alpha: 0.5
```

On the command line sections and keys are joined by dots:
`fptt-dist train configs/add_task.yaml fptt.alpha=0.3 optimizer.name=sgd`.

What is set later wins: defaults, then what the file `extends`, then the file, then `key=value` on the command line. A
key that does not exist, a value out of range and values that do not fit together are refused before anything is
trained, with the nearest name or what to type.

Some sections come in **variants**, which one key chooses (`optimizer.name`, `task.name`, …). Keys under "With …" exist
for that variant alone; choosing another drops those that were set for the old one.
"""


def configuration_page() -> str:
    """Markdown with a section for each group of keys, and an anchor, the dotted name, for each key."""
    parts = [HEAD]
    anchors: set[str] = set()
    top = [key for key in describe() if "." not in key.name]
    parts += ["\n## The run itself { #top }\n", _table(top, anchors)]
    for name, field in Config.model_fields.items():
        if choice_of(field) is None and not any(key.name.startswith(f"{name}.") for key in describe(name)):
            continue
        parts.append(f"\n## {name} {{ #{name} }}\n\n{_sentence(field.description or '')}\n")
        for heading, keys in _groups(name):
            parts += [heading, _table(keys, anchors)]
    return "\n".join(parts)


def _groups(section: str) -> list[tuple[str, list[Key]]]:
    """The keys of a section in tables: those that are always there, then each variant's, with their headings."""
    groups = []
    keys = describe(section)
    for (folder, variant), members in groupby(keys, lambda key: (key.name.rpartition(".")[0], key.variant)):
        if variant is None:
            heading = "" if folder == section else f"\n### {folder} {{ #{folder} }}\n"
        else:
            chooser = next(
                key.name
                for key in keys
                if key.name.rpartition(".")[0] == folder and variant in key.type.removeprefix("one of ").split(", ")
            )
            heading = f"\n### With `{chooser}={variant}` {{ #{folder}-{variant} }}\n"
        groups.append((heading, list(members)))
    return groups


def _table(keys: list[Key], anchors: set[str]) -> str:
    """One row a key. A name that several variants have is anchored at the first of them."""
    rows = ["", "| key | values | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        anchor = "" if key.name in anchors else f'<a id="{key.name}"></a>'
        anchors.add(key.name)
        default = "required" if key.default == "required" else f"`{key.default}`"
        rows.append(f"| {anchor}`{key.name}` | {_cell(key.type)} | {default} | {_cell(key.help)} |")
    return "\n".join([*rows, ""])


def _cell(text: str) -> str:
    """`text` as it is, in a table."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("*", "&#42;"), ("_", "&#95;")):
        text = text.replace(sign, entity)
    return text


def _sentence(text: str) -> str:
    return f"{_cell(text[:1].upper() + text[1:])}."
