"""The pages' SVG pictures: one command draws them, and what is committed is what it draws."""

import re
import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = sorted((DOCS / "figures").glob("draw_*.py"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the scripts draw."""
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(DOCS / "figures")
        for script in SCRIPTS:
            patch.setattr(sys, "argv", [str(script), str(folder)])
            runpy.run_path(str(script), run_name="__main__")
    return folder


def content(picture: Path) -> tuple[list[str], list[float]]:
    """A picture's texts in their order, and all numbers of what is drawn that is not a letter."""
    svg = picture.read_text()
    texts = re.findall(r"<!-- (.*?) -->", svg)
    paths = re.findall(r'<path d="([^"]*)" clip-path|<path d="([^"]*)" style', svg)
    return texts, [float(number) for pair in paths for d in pair for number in re.findall(r"-?\d+\.?\d*", d)]


def test_the_pages_show_all_pictures_that_are_drawn_and_no_others(drawn: Path) -> None:
    pages = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    shown = set(re.findall(r"\]\(figures/((?:architecture|method|parallel)_\w+\.svg)\)", pages))
    assert shown == {picture.name for picture in drawn.iterdir()}


def test_the_committed_pictures_are_what_the_scripts_draw(drawn: Path) -> None:
    """Texts and shapes; the outlines of letters are the library's own and may change with it."""
    for new in sorted(drawn.iterdir()):
        texts, numbers = content(DOCS / "figures" / new.name)
        new_texts, new_numbers = content(new)
        assert len(texts) > 5, f"{new.name}: no texts found"
        assert texts == new_texts, f"{new.name}: draw it again with python docs/figures/draw_*.py"
        assert len(numbers) > 100
        assert numbers == pytest.approx(new_numbers, abs=0.01), f"{new.name}: draw it again"


def test_a_picture_needs_no_font_and_brings_its_own_background(drawn: Path) -> None:
    for picture in drawn.iterdir():
        svg = picture.read_text()
        assert "<text" not in svg
        background = svg[svg.index('id="patch_1"') :].split("</g>")[0]
        assert "fill: #ffffff" in background
