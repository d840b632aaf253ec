"""The notebook in a kernel, and a cell that is interrupted twice."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parents[2] / "examples/own_network.ipynb"
TRAIN = """
import os, signal, threading, time
import fptt_dist

config = {
    "extends": "add_task", "task.length": 20, "model.hidden": 8, "train.max_batches": 1000000, "device": "cpu",
    "evaluate.every_batches": 1000000, "checkpoint.every_batches": 1000000, "logging.tensorboard": False,
}
"""
ONCE = """
threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    fptt_dist.fit({**config, "run.dir": "once"})
except Exception as error:
    print(type(error).__name__, str(error).splitlines()[1])
"""
TWICE = """
class Slow(torch.nn.Module):  # a batch takes longer than somebody waits
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(2, 1)

    def forward(self, x, state=None):
        time.sleep(3 * self.training)
        return self.head(x), state


for seconds in (3, 5):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    fptt_dist.fit({**config, "run.dir": "twice", "fptt.windows": 10}, network=Slow())
except KeyboardInterrupt:
    print("interrupted at once")
"""
AFTER = "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, 1 + 1)"


def executed(notebook: NotebookNode, folder: Path) -> list[str]:
    """Execute a notebook in a folder; what each code cell wrote to stdout, and the types of what it displayed."""
    NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = [[each.text for each in cell.outputs if each.get("name") == "stdout"] for cell in cells]
    shown = [[key for each in cell.outputs for key in each.get("data", ())] for cell in cells]
    return ["".join(text) + " ".join(kinds) for text, kinds in zip(texts, shown, strict=True)]


@pytest.mark.clients
def test_the_notebook_in_a_kernel(tmp_path: Path) -> None:
    _, _, fit, history, load = executed(nbformat.read(NOTEBOOK, 4), tmp_path)
    assert fit.startswith("arrays fptt: test accuracy 0.")
    assert "image/png" in history
    assert load in {f"predicted {each} labeled {each}\n" for each in range(3)}


@pytest.mark.clients
def test_a_cell_is_interrupted(tmp_path: Path) -> None:
    """Once: the batch is finished and the run saved. Twice: at once. The kernel lives on."""
    cells = [nbformat.v4.new_code_cell(text) for text in (TRAIN, ONCE, "import torch\n" + TWICE, AFTER)]
    _, once, twice, after = executed(nbformat.v4.new_notebook(cells=cells), tmp_path)
    assert once == "Interrupted resume with: fptt-dist train once/config.yaml resume=auto\n"
    assert (tmp_path / "once/checkpoints/latest").is_file()
    assert (twice, after) == ("interrupted at once\n", "True 2\n")
