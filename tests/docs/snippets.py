"""The snippets of a Markdown page, and how they are run.

`bash` and `python` fences are programs, run from the top of a page to its end in a fresh copy of the checkout; other
languages are not run. A program that the tests leave out has `<!-- no-run: REASON -->` in the line above its fence.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted(page.relative_to(ROOT) for folder in (".", "docs", "slurm") for page in ROOT.glob(f"{folder}/*.md"))
PROGRAMS = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}
OTHERS = ("text", "yaml")
SECONDS = 120  # that one snippet may take
NO_RUN = re.compile(r"\s*<!-- no-run: (?P<reason>\S.*?) -->\s*")
FOREIGN = ("RAY_", "SLURM", "FPTT_", "PYTEST", "MASTER_", "TORCHELASTIC")  # variables that a user's shell has not


@dataclass(frozen=True)
class Snippet:
    """One fence.

    Attributes:
        line: of the fence in the page, from 1.
        language: what stands behind the fence's three signs; "" for nothing.
        text: what is between the fences.
        reason: why the tests leave it out; None if they run it.
    """

    line: int
    language: str
    text: str
    reason: str | None

    @property
    def runs(self) -> bool:
        """Whether the tests run it."""
        return self.language in PROGRAMS and self.reason is None


def snippets(text: str) -> list[Snippet]:
    """The fences of a page, in order.

    Raises:
        ValueError: a reason that stands above no fence of a program.
    """
    lines = text.splitlines()
    found = []
    reasons = {number for number, line in enumerate(lines, 1) if "no-run:" in line and "<!--" in line}
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map is not None:
            above = NO_RUN.fullmatch(lines[token.map[0] - 1]) if token.map[0] else None
            snippet = Snippet(token.map[0] + 1, token.info.strip(), token.content, above and above["reason"])
            if snippet.language in PROGRAMS and above:
                reasons.discard(token.map[0])
            found.append(snippet)
    if reasons:
        raise ValueError(f"line {min(reasons)}: a reason not to run stands above no program")
    return found


def fresh_copy(folder: Path) -> Path:
    """A copy of the checkout, as a clone would be, but with what is not committed yet."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


def run_page(page: Path, folder: Path) -> list[float]:
    """Run a page's snippets in a fresh copy of the checkout in `folder`.

    Returns:
        The seconds of each.

    Raises:
        AssertionError: one failed, or took too long; with the page, the line, the snippet and what it printed.
    """
    wanted = [snippet for snippet in snippets((ROOT / page).read_text()) if snippet.runs]
    if not wanted:
        return []
    checkout, home = fresh_copy(folder / "checkout"), folder / "home"
    home.mkdir()
    seconds = []
    for snippet in wanted:
        began = time.monotonic()
        code, printed = _run(snippet, checkout, _variables(checkout, home))
        seconds.append(time.monotonic() - began)
        assert code == 0, f"{page}:{snippet.line} ended with {code}\n{snippet.text}\n--- it printed\n{printed}"
    return seconds


def _run(snippet: Snippet, checkout: Path, variables: dict[str, str]) -> tuple[int | str, str]:
    """The exit code, or what happened instead, and what was printed."""
    started = subprocess.Popen(
        [*PROGRAMS[snippet.language], *(["-"] if snippet.language == "python" else ["-c", snippet.text])],
        cwd=checkout,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all it started can be ended with it
    )
    with started as process:
        try:
            printed, _ = process.communicate(snippet.text if snippet.language == "python" else "", timeout=SECONDS)
            return process.returncode, printed
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return f"no end within {SECONDS} s", process.communicate()[0]


def _variables(checkout: Path, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(checkout),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
