"""Export of a run's trained network, for use without the run."""

from pathlib import Path

from fptt_dist.config import ConfigError, UserLayer
from fptt_dist.models import save_network
from fptt_dist.training.saved_run import open_run


def export_run(path: Path, out: Path, which: str = "best", *, trust_code: bool = False) -> Path:
    """Write the network of a run's checkpoint, with the weights that the run evaluates (W̄ if it has a regularizer).

    Args:
        path: the run's folder.
        out: the folder that receives model.safetensors and model.json.
        which: "best" or "latest".
        trust_code: see `open_run`.

    Returns:
        `out`.

    Raises:
        ConfigError: no run there, no such checkpoint, or a network with a user's layer.
    """
    run = open_run(path, which, trust_code=trust_code)
    if isinstance(run.config.model, UserLayer):
        raise ConfigError(
            f"{path} has model.layer={run.config.model.layer}: an exported network is made of this package's layers; "
            f"load {run.folder.checkpoints} by your own code, or evaluate the run by fptt-dist evaluate {path}"
        )
    save_network(
        run.network,
        out,
        {
            "task": run.config.task.model_dump(),
            "input": run.input,
            "algorithm": run.config.algorithm,
            "weights": run.weights,
            "run_id": run.folder.run_id,
        },
    )
    return out
