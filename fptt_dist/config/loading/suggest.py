"""The names a user may have meant."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def did_you_mean(word: str, names: Iterable[str], dotted: Sequence[str] = (), section: str = "") -> str:
    """ "; did you mean …?" with up to three names, or "" when nothing is near `word`.

    `names` are those of the section, printed with `section` and a dot before them; when none is near, the `dotted`
    names whose last part is near.
    """
    near = get_close_matches(word, list(names), n=3)
    if near and section:
        near = [f"{section}.{name}" for name in near]
    if not near:
        last = {name: name.rpartition(".")[2] for name in dotted}
        parts = get_close_matches(word.rpartition(".")[2], sorted(set(last.values())), n=3)
        near = [name for part in parts for name in dotted if last[name] == part][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""
