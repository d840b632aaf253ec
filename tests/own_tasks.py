"""The task of docs/own-task.md in a file, as a user has it."""

from pathlib import Path

from tests.docs.snippets import ROOT, snippets


def write_waves(folder: Path, metric: str = "accuracy") -> Path:
    """Write the page's example as `waves.py`, with this name of its metric."""
    page = (ROOT / "docs/own-task.md").read_text()
    [text] = [each.text for each in snippets(page) if "class Waves" in each.text]
    file = folder / "waves.py"
    file.write_text(text.replace('"accuracy"', f'"{metric}"'))
    return file
