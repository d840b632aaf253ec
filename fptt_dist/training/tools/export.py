"""Export of a run's trained network, for use without the run."""

from pathlib import Path

from fptt_dist.config import ConfigError, UserLayer
from fptt_dist.models import save_network
from fptt_dist.training.run import open_checkpoint


def export_run(path: Path, out: Path, which: str = "best") -> Path:
    """Write the network of a run's checkpoint, with the weights that the run evaluates (W̄ if it has a regularizer).

    Args:
        path: the run's folder.
        out: the folder that receives model.safetensors and model.json.
        which: "best" or "latest".

    Returns:
        `out`.

    Raises:
        ConfigError: no run there, no such checkpoint, or a network with a user's layer.
    """
    trainer = open_checkpoint(path, which)
    config = trainer.config
    if isinstance(config.model, UserLayer):
        raise ConfigError(
            f"{path} has model.layer={config.model.layer}: an exported network is made of this package's layers; load "
            f"{trainer.store.root} by your own code, or evaluate the run by fptt-dist evaluate {path}"
        )
    with trainer.evaluated_weights():
        save_network(
            trainer.network,
            out,
            {
                "task": config.task.model_dump(),
                "input": trainer.task.input_description(),
                "algorithm": config.algorithm,
                "weights": trainer.weights,
                "run_id": trainer.folder.run_id,
            },
        )
    return out
