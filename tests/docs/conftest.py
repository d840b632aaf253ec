"""Says at the end of the tests which snippets were not run."""

import pytest

from tests.docs.snippets import PAGES, PROGRAMS, ROOT, snippets


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    every = [(page, snippet) for page in PAGES for snippet in snippets((ROOT / page).read_text())]
    programs = [(page, snippet) for page, snippet in every if snippet.language in PROGRAMS]
    left_out = [(page, snippet) for page, snippet in programs if snippet.reason]
    terminalreporter.section("snippets of the documentation")
    terminalreporter.line(f"{len(programs) - len(left_out)} of {len(programs)} are run, {len(left_out)} are not:")
    for page, snippet in left_out:
        terminalreporter.line(f"  {page}:{snippet.line}: {snippet.reason}")
