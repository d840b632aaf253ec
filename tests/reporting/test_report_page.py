"""The report's page: its numbers, what is escaped, what it is made from, and how it looks in a real browser."""

import base64
import json
import logging
import re
import shlex
import shutil
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fptt_dist.config import ConfigError, dump
from fptt_dist.reporting import PaperRow, Report, make_report, paper_table, read_runs, results_table
from fptt_dist.reporting.html import page as report_page
from fptt_dist.reporting.html.images import show_figure
from fptt_dist.reporting.html.paper import is_paper_table, read_paper_table
from fptt_dist.reporting.html.table import comparisons
from fptt_dist.reporting.plots.figures import Plot, pictures
from fptt_dist.reporting.runs.groups import Group, group_runs
from fptt_dist.training.run import train
from tests.browser import DESK, PHONE, browser, complaints, overhang
from tests.reporting import sweeps
from tests.reporting.paper import table_of
from tests.training.helpers import result, tiny, train_until

HOSTILE = "<script>alert(1)<b>&amp;"  # no slash: it is a folder's name
ALGORITHMS = ("fptt", "tbptt")
SEEDS = (0, 1)


class Page(HTMLParser):
    """The tables' cells, the pictures, the links, the headings and the elements' names of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open = ""
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")
            case "img":
                self.images.append(dict(attrs))
            case "a":
                self.links.append(dict(attrs)["href"] or "")
            case "h2" | "h3":
                self.headings.append("")
        self._open = tag if tag in ("td", "th", "h2", "h3", "style") else self._open

    def handle_endtag(self, tag: str) -> None:
        self._open = "" if tag == self._open else self._open

    def handle_data(self, data: str) -> None:
        self.text += data if self._open != "style" else ""
        if self._open in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self._open in ("h2", "h3"):
            self.headings[-1] += data

    def table(self, first: str) -> list[dict[str, str]]:
        """The rows of the table whose first column is named so, by the columns' names."""
        (found,) = (table for table in self.tables if table[0][0] == first)
        return [dict(zip(found[0], row, strict=False)) for row in found[1:]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two algorithms with two seeds each, finished; one that is not, and one that has just begun."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for algorithm in ALGORITHMS:
        for seed in SEEDS:
            keys = {"algorithm": algorithm, "seed": seed, "evaluate.every_batches": 2}
            train(tiny(folder / f"{algorithm}-{seed}", keys, batches=6))
    train_until(tiny(folder / HOSTILE, {"algorithm": "tbptt_accumulated", "evaluate.every_batches": 2}, batches=6), 3)
    begun = folder / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text(dump(tiny(begun, {"algorithm": "bptt"})))
    return folder


@pytest.fixture(scope="module")
def mixture(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs, a sweep and a folder of reproduce, below one folder."""
    folder = tmp_path_factory.mktemp("mixture") / "all"
    shutil.copytree(runs, folder / "runs")
    sweep = sweeps.make_sweep(folder / "a<i>sweep", ["fptt.alpha", "fptt.windows"])
    for index, (alpha, windows) in enumerate([(0.1, 2), (0.1, 3), (0.5, 2), (0.5, 3)]):
        keys = {"fptt.alpha": alpha, "fptt.windows": windows}
        sweeps.run(sweep, index, keys, (0.3, 0.1 + alpha + windows / 100), metric="mse", default=index == 0)
    sweeps.note(sweep, 4, {"fptt.alpha": 0.9, "fptt.windows": 2})
    paper = folder / "paper" / "smoke"
    rows = []
    for algorithm in ALGORITHMS:
        own = [paper / f"{algorithm}-seed{seed}" for seed in SEEDS]
        for run in own:
            shutil.copytree(runs / f"{algorithm}-0", run)
        rows.append(PaperRow(label=f"{algorithm} <u>", heading="LSTM", paper="98.1", runs=own))
    rows.append(PaperRow(label="never", paper="1.0", runs=[paper / "never"]))
    (paper / "table9.md").write_text(paper_table(table_of(*rows, notes=["a note of theirs"])))
    (paper / "other.md").write_text("# no table\n")
    (paper / "figures").mkdir()
    Image.new("RGB", (60, 40), (0, 90, 160)).save(paper / "figures" / "table9.png")
    return folder


def one_a_section(groups: list[Group]) -> list[Plot]:
    """Keep one plot per section, since drawing takes the most time."""
    found = pictures(groups)
    return [next(each for each in found if each.section == name) for name in dict.fromkeys(p.section for p in found)]


@pytest.fixture(scope="module")
def written(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_page, "pictures", one_a_section)
        return make_report([mixture], tmp_path_factory.mktemp("written") / "deep" / "page.html")


@pytest.fixture(scope="module")
def whole(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report([mixture], tmp_path_factory.mktemp("whole") / "page.html")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures."""
    monkeypatch.setattr(report_page, "pictures", lambda groups: [])


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.5g} ± {statistics.stdev(values):.2g} ({len(values)})"


@pytest.mark.usefixtures("undrawn")
def test_the_numbers_are_those_of_the_results(runs: Path, tmp_path: Path) -> None:
    page = Page(make_report([runs], tmp_path / "page.html").path)
    rows = {row["group"].split()[0]: row for row in page.table("group")}
    assert rows.keys() == {"fptt", "tbptt", "tbptt_accumulated", "bptt"}
    for algorithm in ALGORITHMS:
        found = [result(runs / f"{algorithm}-{seed}") for seed in SEEDS]
        row = rows[algorithm]
        assert row["runs"] == "2 finished"
        assert row["metric"] == "mse"
        assert row["test"] == spread([each["value"] for each in found])
        assert row["validation"] == spread([each["validation"] for each in found])
        assert (row["updates"], row["sequences"]) == ("18", "24")
        assert row["seconds"] == f"{(found[0]['seconds'] + found[1]['seconds']) / 2:.1f}"
        memory = (found[0]["peak_memory_bytes"] + found[1]["peak_memory_bytes"]) / 2 / 2**20
        assert row["peak memory, MiB"] == f"{memory:,.0f}"
        assert row["parameters, recurrent / all"] == "128 / 133"  # 4·4·(2 + 4) + 2·4·4, and 4 + 1 of the readout
    values = [json.loads(line) for line in (runs / HOSTILE / "metrics.jsonl").read_text().splitlines()]
    (best,) = (each["value"] for each in values if each["kind"] == "evaluation")
    assert rows["tbptt_accumulated"]["runs"] == f"not finished, batch 3 of 6, validation {best:.5g} so far"
    assert rows["bptt"]["runs"] == "not finished, batch 0 of 10"
    assert {rows[name][key] for name in ("tbptt_accumulated", "bptt") for key in ("test", "validation", "seconds")} == {
        "–"
    }
    single = {row["run"]: row for row in page.table("run")}
    assert len(single) == 6
    for algorithm in ALGORITHMS:
        for seed in SEEDS:
            row = single[str(runs / f"{algorithm}-{seed}")]
            assert (row["seed"], row["test"]) == (str(seed), f"{result(runs / f'{algorithm}-{seed}')['value']:.5g}")


def test_what_fptt_adds_is_said_as_the_seeds_say_it(runs: Path, tmp_path: Path) -> None:
    def said(values: dict[str, list[float]]) -> list[str]:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        folders = []
        for algorithm, each in values.items():
            for seed, value in enumerate(each):
                folders.append(tmp_path / "runs" / f"{algorithm}-{seed}")
                shutil.copytree(runs / folders[-1].name, folders[-1])
                text = json.dumps({**result(folders[-1]), "value": value})
                (folders[-1] / "result.json").write_text(text)
        return [each.words for each in comparisons(group_runs(read_runs(folders)))]

    (words,) = said({"fptt": [0.1, 0.3], "tbptt": [0.2, 0.4]})
    assert words.startswith(f"test mse {spread([0.1, 0.3])} and {spread([0.2, 0.4])}: the values of the seeds overlap")
    # of the 6 ways to split four values, one gives the two smaller ones to FPTT, and one to tbptt
    for ours, theirs, order in (([0.1, 0.2], [0.3, 0.4], "fptt.*tbptt"), ([0.3, 0.4], [0.1, 0.2], "tbptt.*fptt")):
        (words,) = said({"fptt": ours, "tbptt": theirs})
        better, worse = order.split(".*")
        assert re.search(
            rf"every seed of {better}.* better than every seed of {worse}.*by chance alone in 1 of 3 ", words
        )
    (words,) = said({"fptt": [0.1], "tbptt": [0.3, 0.4]})
    assert words.endswith("too few seeds to tell a difference from chance.")
    (words,) = said({"fptt": [0.1, 0.2], "tbptt": [0.2, 0.4]})  # as good as is not better
    assert "overlap" in words
    assert said({"fptt": [0.1, 0.2]}) == []


@pytest.mark.usefixtures("undrawn")
def test_fptt_alone_says_what_is_not_shown(runs: Path, tmp_path: Path) -> None:
    pages = [Page(make_report([runs / name], tmp_path / f"{name}.html").path) for name in ("fptt-0", "tbptt-0")]
    assert ["cannot show the effect of the regularizer" in page.text for page in pages] == [True, False]
    assert all("What FPTT adds" not in page.headings for page in pages)


@pytest.mark.usefixtures("undrawn")
def test_the_unknown_tokens_of_a_text_are_shown(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "fptt"
    shutil.copytree(runs / "fptt-0", run)
    assert "Unknown tokens" not in Page(make_report([run]).path).headings
    parts = {"train": [0.01, {}], "validation": [0.2, {"x": 2}], "test": [0.314, {"<b>": 1200, "\u2028": 1}]}
    unknown = {name: {"share": share, "commonest": commonest} for name, (share, commonest) in parts.items()}
    (run / "result.json").write_text(json.dumps({**result(run), "unknown_tokens": unknown}))
    page = Page(make_report([run]).path)
    assert "Unknown tokens" in page.headings
    (row,) = page.table("unknown tokens of")
    assert list(row.values())[1:] == ["1.00%", "20.00%", "31.40%", r"'<b>' 1,200×, '\u2028' (LINE SEPARATOR) 1×"]
    assert list(results_table(read_runs([run])).columns[2].cells) == ["mse (31% <unk>)"]


def test_the_page_needs_nothing_beside_it_and_runs_nothing(written: Report) -> None:
    report, page = written, Page(written.path)
    assert {"script", "iframe", "object", "embed", "base"}.isdisjoint(page.tags)
    assert page.tags.count("link") == 1  # the icon, which is empty
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert all((image["src"] or "").startswith("data:image/") for image in page.images)
    assert {"b", "i", "u"}.isdisjoint(page.tags)  # of the names
    assert HOSTILE in page.text
    assert "a<i>sweep" in page.text
    assert "fptt <u>" in page.text
    files = [unquote(link) for link in page.links if not link.startswith("#")]
    assert files
    assert all((report.path.parent / file).is_file() for file in files)
    assert {f"page_figures/{file.name}" for file in report.pictures.iterdir()} == set(files)
    assert {Path(file).suffix for file in files} == {".png", ".svg"}


def test_the_sections_are_in_order(written: Report) -> None:
    page = Page(written.path)
    order = ["Results", "Convergence", "Windows", "FPTT", "Consensus", "Speed", "Configuration"]
    found = [heading for heading in page.headings if heading in order]
    assert found == [name for name in order if name in found]
    assert {"Results", "Convergence", "Configuration"} <= set(found)
    assert [link.removeprefix("#") for link in page.links if link.startswith("#")] == [name.lower() for name in found]
    assert all(image["alt"] for image in page.images)


def test_a_mixture_has_the_tables_of_all(mixture: Path, written: Report) -> None:
    report, page = written, Page(written.path)
    assert len(report.alone) == 6 + 4
    assert {"Table 9", "Sweep a<i>sweep"} <= set(page.headings)
    paper = page.table("row")
    assert [row["row"] for row in paper] == ["LSTM", "fptt <u>", "LSTM", "tbptt <u>", "never"]
    assert (paper[1]["paper"], paper[4]["ours"]) == ("98.1", "not run")
    assert "a note of theirs" in page.text.lower()
    points = page.table("#")
    assert [row["trial"] for row in points] == ["000", "001", "002", "003", "004"]
    assert points[0]["validation mse"] == "0.22"
    # which of a sweep's runs is the best is not to be seen on the test set
    trials = {row["run"]: row for row in page.table("run") if "a<i>sweep" in row["run"]}
    assert len(trials) == 4
    assert {row["test"] for row in trials.values()} == {"–"}
    assert sum("sweep-" in link for link in page.links) == 2 * 2
    assert (mixture / "a<i>sweep" / "sweep.json").is_file()


def test_a_papers_table_is_read_back(mixture: Path) -> None:
    file = mixture / "paper" / "smoke" / "table9.md"
    table = read_paper_table(file)
    assert (table.name, table.title) == ("table9", "Table 9")
    assert table.unit == "Test accuracy in %; ours: mean ± standard deviation over seeds (number of seeds)."
    assert table.columns[:3] == ["row", "paper", "ours"]
    assert table.rows[0] == ["LSTM"]
    assert len(table.rows[1]) == len(table.columns)
    assert (table.notes[0], table.notes[-1]) == ("do it", "A note of theirs.")
    assert not is_paper_table(file.with_name("other.md"))


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_the_page_again(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "a page.html"
    first = make_report([runs / "fptt-0", runs / "tbptt-0"], out)
    words = shlex.split(first.command)
    assert words == ["fptt-dist", "report", str(runs / "fptt-0"), str(runs / "tbptt-0"), "--out", str(out)]
    assert first.command in Page(out).text


def test_one_that_has_just_begun_alone(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "begun", tmp_path / "begun")
    report = make_report([tmp_path / "begun"])
    page = Page(report.path)
    assert report.path == tmp_path / "begun" / "report.html"
    assert page.table("group")[0]["runs"] == "not finished, batch 0 of 10"
    assert page.images == []


def test_a_sweep_of_which_nothing_has_started(tmp_path: Path) -> None:
    sweep = sweeps.make_sweep(tmp_path / "sweep", ["fptt.alpha"])
    sweeps.note(sweep, 0, {"fptt.alpha": 0.1})
    page = Page(make_report([sweep]).path)
    assert "No run has started yet." in page.text
    assert page.table("#")[0]["state"] == "waiting"


def test_a_large_picture_is_in_the_page_as_png(tmp_path: Path) -> None:
    for points, kind in ((2, "image/svg+xml"), (8000, "image/png")):
        figure = Figure()
        figure.add_subplot().plot(range(points), marker="o", linestyle="")
        shown = show_figure(figure, "a/../b <c>", "title", "caption", tmp_path / "drawn")
        assert shown.source.startswith(f"data:{kind};base64,")
        svg, png = ((tmp_path / "drawn" / f"a-..-b-c-{ending}").read_bytes() for ending in (".svg", ".png"))
        assert (len(svg) > 300_000) == (kind == "image/png")
        assert base64.b64decode(shown.source.partition(",")[2]) == (png if kind == "image/png" else svg)


def test_a_page_is_written_again(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same runs, some named twice: they are there once, their pictures are the same, those of old ones go."""
    kinds = ("convergence_sequences", "windows_losses")
    monkeypatch.setattr(report_page, "pictures", lambda all_: [each for each in pictures(all_) if each.name in kinds])
    out = tmp_path / "page.html"
    report = make_report([runs], out)
    (report.pictures / "old.png").write_bytes(b"old")
    (report.pictures / "mine.txt").write_text("kept")
    before = {file.name: file.read_bytes() for file in report.pictures.glob("*.[ps][nv]g")}
    assert len(before) == 2 * len(kinds) + 1
    again = make_report([runs, runs / "fptt-0", runs / "tbptt-0" / ".." / "fptt-1"], out)
    assert len(again.runs) == 6
    after = {file.name: file.read_bytes() for file in report.pictures.glob("*.[ps][nv]g")}
    assert after.keys() == before.keys() - {"old.png"}
    assert all(after[f"{kind}.svg"] == before[f"{kind}.svg"] for kind in kinds)
    assert (report.pictures / "mine.txt").is_file()
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_cannot_be_reported(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for folder, message in {"gone": "is not there", "file": "is a file", "empty": "holds no run"}.items():
        with pytest.raises(ConfigError, match=f"{folder} {message}"):
            make_report([runs / "fptt-0", tmp_path / folder], tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"--out drawn: the report is one file: type --out drawn/report.html"):
        make_report([runs], Path("drawn"))
    with pytest.raises(OSError, match=r"file/page_figures/.* could not be written: (Not a directory|File exists)"):
        make_report([runs / "fptt-0"], tmp_path / "file" / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.fixture(params=[DESK, PHONE])
def opened(request: pytest.FixtureRequest, whole: Report) -> Iterator[Any]:
    with browser(request.param) as window:
        window.get(whole.path.as_uri())
        yield window


@pytest.mark.slow
def test_in_a_browser(opened: Any) -> None:
    assert complaints(opened) == []
    assert overhang(opened) == 0
    opened.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert overhang(opened) == 0
    sizes = opened.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.clientWidth, i.alt])"
    )
    assert len(sizes) > 5
    for complete, width, height, shown, alt in sizes:
        assert complete
        assert min(width, height, shown) > 0
        assert alt.strip()
    # what is wider than its box is scrolled with the keyboard too
    unreachable = opened.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1 &&"
        " getComputedStyle(e).overflowX === 'auto' && e.tabIndex < 0).length"
    )
    assert unreachable == 0


def test_what_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        train(tiny(tmp_path / name, batches=1))
    (tmp_path / "a" / "config.yaml").write_text("")
    (tmp_path / "b" / "versions.json").write_text("")
    sweeps.make_sweep(tmp_path / "sweep", []).joinpath("sweep.yaml").write_text("")
    with caplog.at_level(logging.WARNING):
        report = make_report([tmp_path])
    assert ([run.path.name for run in report.runs], report.sweeps) == (["b"], [])
    assert sum(f"{tmp_path / name} is left out: " in caplog.text for name in ("a", "sweep")) == 2
    (tmp_path / "b" / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="no run there can be read, see above"):
        make_report([tmp_path])
