"""The site builds strictly, refuses what is broken, and is whole in a browser that is alone on its machine."""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from fptt_dist.config import Key, describe, load
from tests.browser import DESK, PHONE, browser, complaints, overhang
from tests.docs.snippets import ROOT, fresh_copy, run_page, snippets

pytestmark = pytest.mark.slow
PAGES = ("index", "first-hour", "method", "configuration", "api", "commands", "slurm", "results")


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(words, cwd=checkout, env=variables, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_copy(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def site(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(checkout, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def windows() -> Iterator[dict[str, webdriver.Chrome]]:
    with browser(DESK) as desk, browser(PHONE) as phone:
        yield {"desk": desk, "phone": phone}


@pytest.fixture
def window(windows: dict[str, webdriver.Chrome]) -> webdriver.Chrome:
    return windows["desk"]


def test_what_is_broken_is_refused(tmp_path: Path) -> None:
    copy = fresh_copy(tmp_path / "checkout")
    for page, addition in {
        "docs/memory.md": "[a page](nowhere.md) [a place](sweeps.md#nowhere)",
        "slurm/README.md": "[a page](../docs/gone.md)",
    }.items():
        (copy / page).write_text((copy / page).read_text() + f"\n{addition}\n")
    (copy / "docs" / "forgotten.md").write_text("# Forgotten\n")
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    warnings = "\n".join(re.findall(r"^WARNING +-.*(?:\n +-.*)*", done.stderr, re.MULTILINE))  # each is an end
    assert [each for each in ("nowhere.md", "#nowhere", "gone.md", "forgotten.md") if each not in warnings] == []


def test_a_reference_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    copy = fresh_copy(tmp_path / "checkout")
    with (copy / "docs/hooks/reference_api.py").open("a") as hook:
        hook.write('SECTIONS["More"] = ("fptt_dist.nothing",)\n')
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    assert "fptt_dist.nothing" in done.stderr


def test_a_page_is_whole(address: str, windows: dict[str, webdriver.Chrome]) -> None:
    broken = (
        "return [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
    )
    wrong = []
    for (name, window), page in itertools.product(windows.items(), PAGES):
        window.get(f"{address}/{page}.html")
        assert window.find_element(By.TAG_NAME, "h1").text
        loaded = window.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded
        foreign = [url for url in loaded if not url.startswith((address, "data:"))]
        found = (overhang(window), foreign, window.execute_script(broken), complaints(window))
        if found != (0, [], [], []):
            wrong.append((name, page, found))
    assert wrong == []


def test_wide_tables_and_programs_scroll_in_boxes_of_their_own(
    address: str, windows: dict[str, webdriver.Chrome]
) -> None:
    for window in windows.values():
        window.get(f"{address}/results.html")
        boxes = window.execute_script(
            "return [...document.querySelectorAll('.md-typeset__scrollwrap')].map(box => ["
            "box.getBoundingClientRect().left, box.getBoundingClientRect().right, getComputedStyle(box).overflowX])"
        )
        assert boxes
        width = window.execute_script("return document.documentElement.clientWidth")
        assert [box for box in boxes if box[0] < 0 or box[1] > width or box[2] != "auto"] == []


def test_equations_are_drawn_by_the_browser(address: str, window: webdriver.Chrome) -> None:
    window.get(f"{address}/method.html")
    equations = window.execute_script(
        "return [...document.querySelectorAll('math')].map(each => each.getBoundingClientRect()).map("
        "box => [box.width, box.height])"
    )
    assert len(equations) > 10
    assert all(min(size) > 3 for size in equations)
    fractions = window.execute_script(
        "return [...document.querySelectorAll('math[display=block] mfrac')].map(e => [...e.children].map("
        "part => [part.getBoundingClientRect().top, part.getBoundingClientRect().bottom]))"
    )
    assert fractions
    for above, below in fractions:
        assert above[1] <= below[0] + 1  # one above the other
    text = window.execute_script("return document.querySelector('article').innerText")
    assert "\\" not in text
    assert "$" not in text


def test_every_key_has_a_place_to_link_to(address: str, window: webdriver.Chrome) -> None:
    window.get(f"{address}/configuration.html")
    ids = set(window.execute_script("return [...document.querySelectorAll('article [id]')].map(e => e.id)"))
    assert {key.name for key in describe()} <= ids
    rows = window.execute_script(
        "return [...document.querySelectorAll('article tbody tr')].map("
        "row => [...row.cells].map(cell => cell.textContent.trim()))"
    )

    def row(key: Key) -> list[str]:
        return [key.name, key.type, key.default, key.help]

    assert sorted(rows) == sorted(map(row, describe()))


def test_the_api_has_arguments_and_examples(address: str, window: webdriver.Chrome) -> None:
    window.get(f"{address}/api.html")
    text = window.execute_script("return document.querySelector('article').innerText")
    for words in ("FPTT(", "dual_weight", "Raises:", "window_slices(length: int, windows: int)", "load_network("):
        assert words in text, words
    assert (
        window.find_elements(By.CSS_SELECTOR, "article blockquote") == []
    )  # an example that was taken for a quotation


def test_the_examples_of_generated_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    api, configuration = (importlib.import_module(f"reference_{name}") for name in ("api", "configuration"))
    text = f"{api.api_page()} {configuration.configuration_page()}"
    page = tmp_path / "pages.md"
    page.write_text(text)
    assert len(run_page(page, tmp_path)) == 1
    (example,) = (snippet.text for snippet in snippets(text) if snippet.language == "yaml")
    file = tmp_path / "mine.yaml"
    file.write_text(example)
    config = load(file)
    assert (config.optimizer.name, config.fptt.alpha, config.task.name) == ("adamw", 0.5, "adding")


def test_the_search_finds(address: str, site: Path, window: webdriver.Chrome) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    assert any("fptt.alpha" in entry["text"] for entry in index["docs"])
    window.get(f"{address}/index.html?q=alpha")
    window.implicitly_wait(20)
    found = window.find_elements(By.CSS_SELECTOR, ".md-search-result__item a")
    window.implicitly_wait(0)
    assert found
    assert complaints(window) == []


def test_light_and_dark(address: str, window: webdriver.Chrome) -> None:
    window.get(f"{address}/index.html")
    before = window.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    window.execute_script(
        "[...document.querySelectorAll('label.md-header__button[for^=__palette]')].find(e => !e.hidden).click()"
    )
    assert window.find_element(By.TAG_NAME, "body").value_of_css_property("background-color") != before
