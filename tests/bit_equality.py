"""Do two versions of the program train the same weights, bit for bit?

    python -m tests.bit_equality COMMIT [CASE…]

Each case is a tiny run, stopped and resumed once, by the program of the commit and by that of the working tree, on this
machine. Names that differ between the two are translated by `RENAMED`; no bit pattern is kept anywhere.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
BATCHES, STOP = 8, 4  # of a run, and before it is resumed
COMMON = {
    "task.length": "24",
    "task.examples": "64",
    "task.validation": "16",
    "task.test": "16",
    "model.hidden": "8",
    "model.dropout": "0.1",
    "model.layers": "2",
    "fptt.windows": "3",
    "train.batch_size": "8",
    "evaluate.every_batches": "4",
    "checkpoint.every_batches": "4",
    "device": "cpu",
    "seed": "3",
}
DATA_PARALLEL = {"parallel.strategy": "data_parallel"}
CONSENSUS = {"parallel.strategy": "consensus"}
PLAIN = {"fptt.metric": "euclidean", "fptt.alpha": "0.3"}
# With H = 5 and K = 3 the run is stopped in the middle of a sync interval.
CASES: dict[str, tuple[int, dict[str, str]]] = {
    "fptt": (1, {}),
    "fptt proximal, sgd, resets": (
        1,
        {
            **PLAIN,
            "fptt.update_rule": "proximal",
            "optimizer.name": "sgd",
            "fptt.reset_weights": "true",
            "fptt.reset_dual": "true",
        },
    ),
    "fptt second gradient, clip, gru": (
        1,
        {
            **PLAIN,
            "fptt.update_rule": "second_gradient",
            "fptt.clip_scope": "gradient",
            "optimizer.name": "sgd",
            "model.layer": "gru",
        },
    ),
    "tbptt, micro-batches": (1, {"algorithm": "tbptt", "train.micro_batch_size": "2"}),
    "tbptt_accumulated, antisymmetric": (1, {"algorithm": "tbptt_accumulated", "model.layer": "antisymmetric"}),
    "bptt": (1, {"algorithm": "bptt"}),
    "bptt_aux, bf16": (1, {"algorithm": "bptt_aux", "train.precision": "bf16"}),
    "data parallel": (2, DATA_PARALLEL),
    "data parallel, ddp": (2, {**DATA_PARALLEL, "parallel.reduce": "ddp"}),
    "consensus": (2, CONSENSUS),
    "consensus H = 5, delayed": (2, {**CONSENSUS, "parallel.sync_every": "5", "parallel.sync_delay": "2"}),
    "consensus H = 5, bf16, center": (
        2,
        {
            **CONSENSUS,
            "parallel.sync_every": "5",
            "parallel.sync_dtype": "bf16",
            "parallel.weight_sync": "center",
            "parallel.warmup_updates": "4",
        },
    ),
    "consensus H = 5, local dual": (
        2,
        {**CONSENSUS, "parallel.sync_every": "5", "parallel.dual": "local", "data.partition": "fixed"},
    ),
    "fsdp": (2, {"parallel.strategy": "fsdp"}),
    "zero 2": (2, {"parallel.strategy": "deepspeed", "parallel.zero_stage": "2"}),
}
RENAMED = {  # the words of now → those of a commit before they were renamed, where a commit's program has no others
    "model.layer": "model.cell",
    "fptt.update_rule": "fptt.update",
    "fptt.clip_scope": "fptt.clip",
    "train.max_batches": "train.batches",
    "evaluate.every_batches": "evaluate.every",
    "checkpoint.every_batches": "checkpoint.every",
    "parallel.sync_every": "parallel.every",
    "parallel.sync_delay": "parallel.delay",
    "parallel.sync_dtype": "parallel.payload",
    "parallel.weight_sync": "parallel.weights",
    "parallel.warmup_updates": "parallel.start_after",
    "parallel.zero_stage": "parallel.stage",
    "data.partition": "data.shards",
    "algorithm=tbptt_accumulated": "algorithm=tbptt",
    "algorithm=tbptt": "algorithm=online",
    "parallel.strategy=data_parallel": "parallel.strategy=gradient",
    "parallel.dual=local": "parallel.dual=worker",
    "fptt.update_rule=proximal": "fptt.update=prox",
    "fptt.update_rule=second_gradient": "fptt.update=algorithm2",
}


def train(program: Path, folder: Path, case: str, *, old_words: bool) -> None:
    """Train a case with the program in this checkout, stopped and resumed once.

    Raises:
        RuntimeError: the program failed; with what it printed.
    """
    workers, keys = CASES[case]
    for batches in (STOP, BATCHES):
        words = {**COMMON, **keys, "train.max_batches": str(batches), "run.dir": str(folder), "resume": "auto"}
        start = ["train"] if workers == 1 else ["launch", "--nproc", str(workers)]
        overrides = [_old(key, value) if old_words else f"{key}={value}" for key, value in words.items()]
        done = subprocess.run(
            [sys.executable, "-m", "fptt_dist", *start, "add_task", *overrides],
            cwd=program,
            env={**os.environ, "PYTHONPATH": str(program), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"{case}: {' '.join(overrides)}\n{done.stdout}{done.stderr}")


def _old(key: str, value: str) -> str:
    return RENAMED.get(f"{key}={value}") or f"{RENAMED.get(key, key)}={value}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a run's last checkpoint that make up its weights, by file and name."""
    last = folder / "checkpoints" / f"step-{BATCHES:08d}"
    files = [*last.rglob("model.safetensors"), *last.rglob("optimizer.safetensors")]
    return {f"{file.relative_to(last)}:{name}": t for file in files for name, t in load_file(file).items()}


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


def compare(commit: str, cases: list[str]) -> bool:
    """Train and compare; print a line per case, and return whether all are equal."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        before = place / "before"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(before), commit], cwd=ROOT, check=True)
        try:
            schema = (before / "fptt_dist/config").rglob("*.py")
            old_words = not any("sync_every" in path.read_text() for path in schema)
            equal = True
            for case in cases:
                one, other = place / f"{case} before", place / f"{case} now"
                with ThreadPoolExecutor(2) as pool:
                    jobs = [
                        pool.submit(train, before, one, case, old_words=old_words),
                        pool.submit(train, ROOT, other, case, old_words=False),
                    ]
                    for job in jobs:
                        job.result()
                ours, theirs = weights(other), weights(one)
                same = ours.keys() == theirs.keys() and bool(ours)
                bits = same and all(_same_bits(tensor, theirs[name]) for name, tensor in ours.items())
                print(f"{case:<42}{len(ours):4} tensors  {'equal' if bits else 'DIFFERENT'}", flush=True)
                equal &= bits
            return equal
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("case", nargs="*", choices=[[], *CASES], default=[])
    options = parser.parse_args()
    sys.exit(not compare(options.commit, options.case or list(CASES)))
