"""A callback in a program of two workers: it is called on rank 0 alone, and its exception ends both."""

import os
import re
from pathlib import Path

import pytest

from tests.program import Program
from tests.training.helpers import checkpoints

pytestmark = pytest.mark.slow

PROGRAM = """
import os
import sys
from pathlib import Path

from fptt_dist import Callback, fit
from tests.training.helpers import tiny


class Fragile(Callback):
    def on_batch_end(self, event):
        print(f"rank {os.environ['RANK']} batch {event.batch}", flush=True)
        if event.batch == int(sys.argv[2]):
            raise ValueError("too bad")


keys = {"checkpoint.every_batches": 1, "resume": "auto", "parallel.timeout_seconds": 20}
fit(tiny(Path(sys.argv[1]), keys, batches=5), callbacks=[Fragile()])
"""


def test_its_exception_ends_all_workers_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "program.py")]

    def run(batch: int) -> tuple[int, str, list[str]]:
        program = Program(tmp_path / "log", [*torchrun, str(tmp_path / "run"), str(batch)], dict(os.environ))
        try:
            code, text = program.end(60), program.text()
        finally:
            program.kill()
        return code, text, re.findall(r"^rank \d batch \d", text, flags=re.MULTILINE)

    code, text, calls = run(3)
    assert code == 1
    assert calls == [f"rank 0 batch {b}" for b in (1, 2, 3)]
    assert 'raise ValueError("too bad")' in text
    assert "CallbackError: Fragile.on_batch_end raised ValueError: too bad" in text
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000002"
    code, text, calls = run(0)
    assert code == 0, text
    assert calls == [f"rank 0 batch {b}" for b in (3, 4, 5)]
