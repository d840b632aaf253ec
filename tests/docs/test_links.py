"""The pages' links work in the repository; that they work on the site too, `mkdocs build --strict` checks."""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "slurm" / "README.md"]


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[tuple[str, str]]:
    """The file and the heading of each link that leads to no other site."""
    for link in re.findall(r"\]\(([^)\s]+)", without_code(page)):
        if not re.match(r"[a-z]+:", link):
            file, _, heading = link.partition("#")
            yield file, heading


def headings(page: Path) -> set[str]:
    """The headings by the names that links have for them."""
    lines = re.findall(
        r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.M
    )
    ascii = (unicodedata.normalize("NFKD", line).encode("ascii", "ignore").decode() for line in lines)  # as the site
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", line).strip().lower()) for line in ascii}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for file, heading in links(page):
        target = page.parent / file if file else page
        if not target.exists() or (heading and heading not in headings(target)):
            broken.append(f"{file}#{heading}")
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_test_named_is_there(page: Path) -> None:
    named = re.findall(r"`(?:python -m pytest )?(tests/[\w/.]+\.py)", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_install_lines_work_from_a_checkout() -> None:
    """The package is on no index."""
    sources = [file for folder in ("fptt_dist", "launchers") for file in (ROOT / folder).rglob("*.py")]
    found = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in [*PAGES, *sources]
        for line in re.findall(r"pip install [^\n`]*", file.read_text())
        if re.search(r"fptt[-_]dist\b", line)
    ]
    assert found == []
