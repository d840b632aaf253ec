"""Worker processes, started once a test session, that run a function as the ranks of one job.

Starting a process that imports torch takes seconds, a job on processes that run already milliseconds. Each job has its
own process group, connected through a file; a rank that raises leaves its group, which ends the others' collectives.
"""

import multiprocessing
import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from fptt_dist.parallel import LaunchEnvironment

T = TypeVar("T")

START_SECONDS = 120.0
COLLECTIVE_SECONDS = 30.0
MOST_THREADS = 300  # engines keep their groups, each with threads that poll: workers with more are replaced
READY, PART = b"ready", b"part"


class WorkerError(Exception):
    """A rank raised, died or did not answer; the message has every failing rank's traceback, the first one first."""


@dataclass(frozen=True)
class Answer:
    """What a rank sends back: its pickled result, or its traceback and when it raised."""

    result: bytes | None = None
    trace: str = ""
    raised_at: float = 0.0


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection


class Pool:
    """Up to `size` worker processes, started when first needed.

    Args:
        folder: where the jobs' process groups find each other.
        size: the largest world.
    """

    def __init__(self, folder: Path, size: int = 4) -> None:
        self._folder = folder
        self._size = size
        self._workers: list[_Worker] = []
        self._jobs = 0

    def run(
        self, function: Callable[..., T], *args: Any, world: int = 2, connected: bool = True, timeout: float = 60.0
    ) -> list[T]:
        """Call `function(environment, *args)` on `world` workers at once; their results by rank.

        Args:
            function: of a module's top level, so that it can be pickled; so must its arguments and result.
            world: number of ranks; one alone has no process group.
            connected: whether the ranks form a gloo group while `function` runs.
            timeout: seconds until all must have answered; then they are killed.

        Raises:
            WorkerError: a rank raised, died or did not answer.
        """
        self._start(world)
        self._jobs += 1
        store = str(self._folder / f"job-{self._jobs}") if connected and world > 1 else None
        for rank, worker in enumerate(self._workers[:world]):
            environment = LaunchEnvironment(rank, world, rank, "the tests' pool")
            worker.connection.send_bytes(pickle.dumps((function, environment, store, args)))
        results: list[T] = []
        problems = []
        for rank, answer in sorted(self._answers(world, timeout).items(), key=lambda item: item[1].raised_at):
            if answer.result is None:
                problems.append(f"rank {rank} of {world} {answer.trace}")
            else:
                results.append(pickle.loads(answer.result))
        if problems:
            raise WorkerError("\n".join(problems))
        return results

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.process.terminate()  # which lets coverage write what it has
        for worker in self._workers:
            worker.process.join(5.0)
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def _start(self, world: int) -> None:
        """Make sure that `world` workers run."""
        assert world <= self._size
        if max(map(_threads, self._workers), default=0) > MOST_THREADS:
            self.close()
        # Where a GPU's driver was asked for anything before a fork, the forked process cannot use it.
        spawn, forkserver = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")
        context = spawn if Path("/dev/nvidiactl").exists() else forkserver
        context.set_forkserver_preload(["tests.preloaded"])
        new = []
        while len(self._workers) < world:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))
            new.append((len(self._workers) - 1, ours))
        for rank, connection in new:
            if not connection.poll(START_SECONDS):
                self.close()
                raise WorkerError(f"worker {rank} did not start within {START_SECONDS:g} s")
            connection.recv_bytes()

    def _answers(self, world: int, timeout: float) -> dict[int, Answer]:
        """Every rank's answer, in the order of the ranks."""
        deadline = time.monotonic() + timeout
        pending = {worker.connection: rank for rank, worker in enumerate(self._workers[:world])}
        answers: dict[int, Answer] = {}
        lost = False
        while pending:
            heard = wait(list(pending), max(0.0, deadline - time.monotonic()))
            if not heard:
                answers |= {rank: Answer(trace=f"did not answer within {timeout:g} s") for rank in pending.values()}
                lost = True
                break
            for connection in heard:
                assert isinstance(connection, Connection)
                rank = pending.pop(connection)
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    process = self._workers[rank].process
                    process.join(5.0)
                    answers[rank] = Answer(trace=f"died with exit code {process.exitcode}")
                    lost = True
        if lost:
            self.close()
        for worker in self._workers[:world]:
            worker.connection.send_bytes(PART)
        return dict(sorted(answers.items()))


def _threads(worker: _Worker) -> int:
    """How many threads a worker has; 0 for one that died."""
    tasks = Path(f"/proc/{worker.process.pid}/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 0


def _serve(connection: Connection) -> None:
    """A worker's life: take a job, answer, part when all have answered; until the other end is closed."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the program does, whichever job comes first
    connection.send_bytes(READY)
    variables = dict(os.environ)
    while True:
        try:
            answer = _answer(connection.recv_bytes())
            if answer.result is None and dist.is_initialized():
                dist.destroy_process_group()  # at once: it ends the others' collectives
            connection.send_bytes(pickle.dumps(answer))
            connection.recv_bytes()
        except EOFError:
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        # torch numbers the groups of a process, a failed start counts too, and ranks meet only at equal numbers:
        # leaving a group of one starts the count again.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(variables)


def _answer(job: bytes) -> Answer:
    """Run one job."""
    import torch.distributed as dist

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function, environment, store, args = pickle.loads(job)
            if store is not None:
                dist.init_process_group(
                    "gloo",
                    init_method=f"file://{store}",
                    rank=environment.rank,
                    world_size=environment.world,
                    timeout=timedelta(seconds=COLLECTIVE_SECONDS),
                )
            return Answer(pickle.dumps(function(environment, *args)))
    except BaseException:
        return Answer(trace=f"raised:\n{traceback.format_exc()}", raised_at=time.monotonic())
