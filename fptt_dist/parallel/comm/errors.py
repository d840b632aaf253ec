"""The error for a failed collective: which workers were lost, and what is known about it."""

import json
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch._C import _distributed_c10d as distributed_c10d  # pyright: ignore[reportAttributeAccessIssue]
from torch.distributed.distributed_c10d import _get_default_store

GRACE = 5.0  # seconds in which every worker that still runs meets the same failure


class LostWorkerError(Exception):
    """A collective failed, because a worker died, raised, or did not join it in time.

    Attributes:
        collective: its name.
        silent: ranks in the whole job that did not report the same failure: those it waited for.
        remedy: what to do once the cause is found; whoever knows the run's command says it.
    """

    def __init__(self, *, rank: int, collective: str, seconds: float, silent: list[int], error: Exception) -> None:
        self.collective = collective
        self.silent = silent
        self.remedy = "start again with resume=auto"
        who = ", ".join(map(str, silent))
        found = f"no word from rank{'s' if len(silent) > 1 else ''} {who}" if silent else "it failed on all others too"
        super().__init__(
            f"rank {rank} lost the other workers in the collective {collective!r} after {seconds:.1f} s ({found}): "
            f"{str(error).splitlines()[0]}\nThe checkpoints are untouched: look at the first error of the ranks named"
        )

    def __str__(self) -> str:
        return f"{super().__str__()}, then {self.remedy}"


def silent_ranks(ranks: list[int], own: int) -> list[int]:
    """Return those of `ranks` that do not report within five seconds that a collective failed for them too.

    Each reports it in the store through which the workers met; if the store is gone or does not answer, so is rank 0,
    which serves it.
    """
    others = [rank for rank in ranks if rank != own]
    found: list[list[int]] = []
    # Torch waits for the answer of a server that stands still without end, whatever the store's timeout is.
    asking = threading.Thread(target=lambda: found.append(_not_reported(others, own)), daemon=True)
    asking.start()
    asking.join(2 * GRACE)
    return found[0] if found else _served_by(others)


def _not_reported(others: list[int], own: int) -> list[int]:
    silent = others
    try:
        store = _get_default_store()
        store.set_timeout(timedelta(seconds=GRACE))
        store.set(f"fptt_dist/lost/{own}", "1")
        deadline = time.monotonic() + GRACE
        while silent and time.monotonic() < deadline:
            silent = [rank for rank in silent if not store.check([f"fptt_dist/lost/{rank}"])]
            time.sleep(0.1)
    except (RuntimeError, ValueError):
        return _served_by(silent)
    return silent


def _served_by(ranks: list[int]) -> list[int]:
    """Return rank 0, which serves the store, if it is one of `ranks`; all of them otherwise."""
    return [rank for rank in ranks if rank == 0] or ranks


def dump_flight_recorder(folder: Path) -> Path | None:
    """Write torch's record of this process's last collectives, where the backend keeps one and `folder` exists."""
    dump = getattr(distributed_c10d, "_dump_fr_trace_json", None)  # torch >= 2.8
    if dump is None or not folder.is_dir():
        return None
    path = folder / f"flight_recorder_rank{dist.get_rank()}.json"
    path.write_text(json.dumps(json.loads(dump()), indent=1) + "\n")
    return path
