"""One thing has one name, the one that readers of PyTorch, torchtitan and SLURM manuals know."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("fptt_dist", "tests", "launchers", "docs", "configs", "examples", "slurm", "benchmarks", ".")
SUFFIXES = (".py", ".md", ".yaml", ".sbatch", ".jinja")
QUOTING = ("test_words.py", "bit_equality.py")  # these hold the words themselves
BANNED = {
    r"agree(s|d|ing|ments?)?": "synchronize, sync; of two values that are equal: match",
    r"pull(s|ed|ing)?": "the regularizer, the regularizer's gradient",
    r"forces?|forced|anchors?": "the regularizer, the regularizer's gradient; the consensus term",
    r"travel(s|led|ing)?|handed over": "is communicated, sent; payload",
    r"dealt|deals?|dealing": "partition, shard, distribute",
    r"go on|goes on|went on|going on": "resume, continue",
    r"torn|broke off|breaks off": "truncated, corrupt; interrupted",
    r"voices?|wishes": "replica; control flags",
    r"learnt|initialis\w+|colours?|coloured|centre": "American spelling",
    r"read-outs?": "output layer, head",
    r"ringing|brakes?": "oscillation, damping",
    r"online": "tbptt",
    r"slow variables?": "slow weights",
    r"shards? (un)?alike|(un)?like shards": "IID, non-IID partition",
}
ALLOWED = (
    r"https?://\S+",
    r"\"Accurate online training",
    r"\bfptt_online\w*|\bonline_learning\b",  # spikingjelly's
    r"\bforce_\w+",
    r"git pull|pull request",
    r"\bnode\.anchor\b",  # YAML's
)


def texts() -> Iterator[tuple[Path, str]]:
    """The files that are written for people or by them, each once."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*" if folder == "." else "**/*")):
            inside = path.relative_to(ROOT)
            linked = inside.parts[:2] in (("fptt_dist", "launchers"), ("fptt_dist", "configs"), ("fptt_dist", "slurm"))
            if path.is_file() and path.suffix in SUFFIXES and not linked and path.name not in QUOTING:
                yield inside, path.read_text()


def test_no_word_of_our_own_for_what_the_field_has_a_word_for() -> None:
    found = []
    for path, text in texts():
        kept = re.sub("|".join(ALLOWED), "", text)
        for words, instead in BANNED.items():
            for match in re.finditer(rf"(?<![\w-])({words})(?![\w-])", kept, flags=re.IGNORECASE):
                line = kept.count("\n", 0, match.start()) + 1
                found.append(f"{path}:{line}: {match[0]!r}: {instead}")
    assert found == []


def test_a_docstring_begins_with_a_verb_or_a_noun_phrase() -> None:
    found = []
    for path, text in texts():
        if path.suffix != ".py" or path.parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = (ast.get_docstring(node) or "").split(" ")[0]
                if first in ("What", "Whether", "Which", "How"):
                    found.append(f"{path}:{getattr(node, 'lineno', 1)}: {first}")
    assert found == []
