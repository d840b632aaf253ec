"""Check that all workers run the same program: one message instead of a hang or a wrong run."""

import hashlib
import platform
from pathlib import Path

import torch

from fptt_dist import version
from fptt_dist.config import Config, ConfigError, UserLayer
from fptt_dist.parallel import Communicator
from fptt_dist.training.run_dir import flat_values


def check_consistency(everyone: Communicator, config: Config) -> None:
    """Compare configuration, program and libraries of all workers.

    Raises:
        ConfigError: on every worker, what differs and where.
    """
    if everyone.world == 1:
        return
    mine = {
        "configuration": hashlib.sha256(repr(sorted(flat_values(config).items())).encode()).hexdigest(),
        "code of fptt_dist": _code(),
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    if isinstance(config.model, UserLayer):
        file = config.model.file
        mine["code of model.layer"] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "not there"
    said = everyone.all_gather_object(mine, name="same program")
    if all(other == said[0] for other in said):
        return
    values = everyone.all_gather_object(flat_values(config), name="same configuration")
    lines = []
    for rank, (other, keys) in enumerate(zip(said, values, strict=True)):
        lines += [
            f"  {key}: {values[0].get(key, 'not set')} on rank 0, {keys.get(key, 'not set')} on rank {rank}"
            for key in sorted(values[0].keys() | keys.keys())
            if values[0].get(key) != keys.get(key)
        ]
        lines += [
            f"  {thing}: {said[0][thing][:12]} on rank 0, {other[thing][:12]} on rank {rank}"
            for thing in mine
            if thing != "configuration" and other[thing] != said[0][thing]
        ]
    raise ConfigError("the workers do not run the same:\n" + "\n".join(lines))


def _code() -> str:
    """Return the checksum of this program's source."""
    root = Path(version.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
