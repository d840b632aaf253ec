"""The page of every configuration key, generated from the schema."""

from itertools import groupby

from fptt_dist.config import Config, Key, describe
from fptt_dist.config.schema.section import choice_of

HEAD = """# Configuration

Every key that a configuration file or the command line can set, by section. `fptt-dist config keys fptt` prints a
section, `fptt-dist config show CONFIG` a configuration with all defaults. A file sets what differs from them:

```yaml
extends: add_task.yaml     # a file beside this one, or a packaged name; of a list, a later one wins
optimizer: {name: adamw, lr: 2e-3}
fptt:
  alpha: 0.5
```

On the command line sections and keys are joined by dots:
`fptt-dist train configs/add_task.yaml fptt.alpha=0.3 optimizer.name=sgd`.

Later values win: defaults, then what the file `extends`, then the file, then `key=value` on the command line. A
key that does not exist, a value out of range and values that do not fit together are refused before
training starts, with the nearest name or what to type.

Some sections come in **variants**, which one key chooses (`optimizer.name`, `task.name`, …). Keys under "With …" exist
for that variant alone; choosing another drops those that were set for the old one.
"""


def configuration_page() -> str:
    """Return Markdown with a section for each group of keys, and a link target, the dotted name, for each key."""
    parts = [HEAD]
    targets: set[str] = set()
    top = [key for key in describe() if "." not in key.name]
    parts += ["\n## The run itself { #top }\n", _table(top, targets)]
    for name, field in Config.model_fields.items():
        if choice_of(field) is None and not any(key.name.startswith(f"{name}.") for key in describe(name)):
            continue
        parts.append(f"\n## {name} {{ #{name} }}\n\n{_sentence(field.description or '')}\n")
        for heading, keys in _groups(name):
            parts += [heading, _table(keys, targets)]
    return "\n".join(parts)


def _groups(section: str) -> list[tuple[str, list[Key]]]:
    """Return the tables of a section with their headings: the keys that always exist, then those of each variant."""
    groups = []
    keys = describe(section)
    for (folder, variant), members in groupby(keys, lambda key: (key.name.rpartition(".")[0], key.variant)):
        if variant is None:
            heading = "" if folder == section else f"\n### {folder} {{ #{folder} }}\n"
        else:
            chooser = next(
                (
                    f"{key.name}={variant}"
                    for key in keys
                    if key.name.rpartition(".")[0] == folder and variant in key.type.removeprefix("one of ").split(", ")
                ),
                f"{folder}.{variant}",  # a key in the place of the one with these values
            )
            heading = f"\n### With `{chooser}` {{ #{folder}-{variant} }}\n"
        groups.append((heading, list(members)))
    return groups


def _table(keys: list[Key], targets: set[str]) -> str:
    """Return one row per key; a name that several variants have gets its link target at the first of them."""
    rows = ["", "| key | values | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        target = "" if key.name in targets else f'<a id="{key.name}"></a>'
        targets.add(key.name)
        default = "required" if key.default == "required" else f"`{key.default}`"
        rows.append(f"| {target}`{key.name}` | {_cell(key.type)} | {default} | {_cell(key.help)} |")
    return "\n".join([*rows, ""])


def _cell(text: str) -> str:
    """Return `text` escaped for a Markdown table cell."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("*", "&#42;"), ("_", "&#95;")):
        text = text.replace(sign, entity)
    return text


def _sentence(text: str) -> str:
    return f"{_cell(text[:1].upper() + text[1:])}."
