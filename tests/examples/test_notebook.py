"""The notebook: its cells run in order, it was saved without outputs, and its network learns."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/own_network.ipynb"


def test_the_cells_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/clients/test_notebook.py runs them in a kernel."""
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in cells)
    backend = matplotlib.get_backend()
    names: dict[str, Any] = {}
    plt.switch_backend("agg")
    try:
        for cell in cells:
            exec("".join(cell["source"]), names)
        drawn = [len(line.get_xdata()) for axes in names["figure"].axes for line in axes.lines]
    finally:
        plt.close("all")
        plt.switch_backend(backend)
    assert drawn == [len(names["losses"]), len(names["accuracies"])]
    assert names["result"].value > 0.8  # a third by chance
    assert f"predicted {names['labels'][0]} labeled {names['labels'][0]}\n" in capsys.readouterr().out
