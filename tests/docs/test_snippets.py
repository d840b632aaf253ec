"""Every shell and Python snippet of the documentation runs, or says why not."""

from pathlib import Path

import pytest

from tests.docs.snippets import OTHERS, PAGES, PROGRAMS, ROOT, Snippet, run_page, snippets


def of_page(page: Path) -> list[Snippet]:
    return snippets((ROOT / page).read_text())


def test_every_fence_says_its_language() -> None:
    fences = [(f"{page}:{snippet.line}", snippet.language) for page in PAGES for snippet in of_page(page)]
    assert [fence for fence in fences if fence[1] not in (*PROGRAMS, *OTHERS)] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(s.runs for s in of_page(page))], ids=str)
def test_a_page_from_its_top_to_its_end(page: Path, tmp_path: Path) -> None:
    assert run_page(page, tmp_path)


def test_what_a_page_is_made_of() -> None:
    page = (
        "text\n\n```bash\ntrue\n```\n\n<!-- no-run: needs a GPU -->\n```python\n1\n```\n"
        "1. in a list\n\n   ```text\n   x\n   ```\n"
    )
    assert snippets(page) == [
        Snippet(3, "bash", "true\n", None),
        Snippet(8, "python", "1\n", "needs a GPU"),
        Snippet(13, "text", "x\n", None),
    ]
    assert [snippet.runs for snippet in snippets(page)] == [True, False, False]


def test_a_reason_without_a_program() -> None:
    for text in (
        "<!-- no-run: a reason -->\n\n```bash\ntrue\n```\n",
        "<!-- no-run: a reason -->\n```text\ntrue\n```\n",
        "<!-- no-run: -->\n```bash\ntrue\n```\n",
        "<!-- no-run: a reason -->\n",
    ):
        with pytest.raises(ValueError, match="line 1: a reason not to run stands above no program"):
            snippets(text)


@pytest.mark.slow
def test_a_page_that_fails(tmp_path: Path) -> None:
    for language, text in (("bash", "false | true\ntouch on"), ("python", "import nothing")):
        folder = tmp_path / language
        folder.mkdir()
        page = folder / "page.md"
        page.write_text(f"```bash\ntest -f pyproject.toml\n```\n\n```{language}\n{text}\n```\n")
        with pytest.raises(AssertionError, match=r"page\.md:5 ended with 1"):
            run_page(page, folder)
        assert not (folder / "checkout" / "on").exists()
