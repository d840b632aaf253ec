"""Messages that docs/troubleshooting.md cites exist in the source."""

import ast
import re
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR2

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()


def said() -> str:
    """Every text of the source, `…` for what varies in it."""
    found: list[str] = []
    files = [file for folder in ("fptt_dist", "launchers") for file in (ROOT / folder).rglob("*.py")]
    for node in [node for file in files for node in ast.walk(ast.parse(file.read_text()))]:
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%[-0-9.]*[a-z]", "…", node.value))
    return re.sub(r"…[\s…]*…", "…", "\n".join(found))


def test_the_messages_cited_are_those_of_the_program() -> None:
    """With a `…`, or in the first column of the table of messages."""
    table = PAGE.partition("## What stands behind a message")[2]
    first = [code for row in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE) for code in re.findall("`(.+?)`", row)]
    cited = {
        *first,
        *(code for code in re.findall("`([^`\n]+)`", PAGE) if re.search(r"….*[a-z ]{6}|\b[a-z]+ [a-z]+ …", code)),
    }
    assert len(first) > 10
    text = said()
    assert [code for code in sorted(cited) if code.strip("… ") not in text] == []


def test_every_exit_code_is_in_the_table() -> None:
    table = re.findall(r"^\| (\d+) \| ", PAGE, re.MULTILINE)
    assert [int(code) for code in table] == [0, 1, 2, 128 + SIGHUP, 128 + SIGINT, 128 + SIGUSR2, 128 + SIGTERM]
