"""Export of a run's trained network, for use without the run."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from fptt_dist.config import ConfigError
from fptt_dist.files import write_atomic
from fptt_dist.models import UserNetwork, save_network
from fptt_dist.training.saved_run import SavedRun, open_run
from fptt_dist.training.setup.factory import exit_refused

Format = Literal["safetensors", "torch", "onnx"]
MODEL = {"torch": "model.pt2", "onnx": "model.onnx"}


def export_run(
    path: Path,
    out: Path,
    which: str = "best",
    *,
    format: Format = "safetensors",
    trust_code: bool = False,
) -> Path:
    """Write the network of a run's checkpoint, with the weights that the run evaluates (W̄ if it has a regularizer).

    Args:
        path: the run's folder.
        out: the folder that receives the network, and model.json, which describes it.
        which: "best" or "latest".
        format: "safetensors": the weights, for `load_network`; "torch": a torch.export program; "onnx".
        trust_code: see `open_run`.

    Returns:
        `out`.

    Raises:
        ConfigError: no run there, no such checkpoint, or a network that cannot be exported, with the reason.
        OSError: it could not be written.
    """
    assert format in get_args(Format)
    run = open_run(path, which, trust_code=trust_code)
    description = {
        "task": run.config.task.model_dump(),
        "input": run.input,
        "algorithm": run.config.algorithm,
        "weights": run.weights,
        "run_id": run.folder.run_id,
    }
    with exit_refused(run.config):
        if format == "safetensors":
            _write_weights(run, out, description)
        else:
            _write_program(run, out, description, format)
    return out


def _write_weights(run: SavedRun, out: Path, description: dict[str, Any]) -> None:
    own = next((each for each in run.config.user_classes if each.key.startswith("model.")), None)
    if own is not None:
        raise ConfigError(
            f"{run.folder.path} has {own.key}={own}, and --format=safetensors is for networks of "
            "this package's layers: type --format=torch or --format=onnx, or load it with its code: "
            f"fptt_dist.load({str(run.folder.path)!r})"
        )
    assert not isinstance(run.network, UserNetwork)
    save_network(run.network, out, description)


def _write_program(run: SavedRun, out: Path, description: dict[str, Any], format: Format) -> None:
    from fptt_dist.models.programs.step import ProgramError, step_program

    symbols = run.shape.vocabulary_size is not None
    try:
        step = step_program(run.network.cpu(), run.shape.inputs, symbols=symbols)
        write, made_with = (_torch_program if format == "torch" else _onnx_program)(step)
    except ProgramError as error:
        raise ConfigError(f"{run.folder.path} cannot be exported with --format={format}: {error}") from error
    named = [f"state_{number}" for number in range(len(step.state))]
    rows = zip(named, step.state_shapes, step.state, strict=True)
    values = {
        "format": f"fptt_dist {format} 1",
        "inputs": {"x": ["steps", "batch", *([] if symbols else [run.shape.inputs])]},
        "state": [{"name": name, "shape": shape, "dtype": _dtype(each)} for name, shape, each in rows],
        "outputs": {"y": ["steps", "batch", run.shape.outputs]},
        "dtype": "int64" if symbols else _dtype(step.x),
        "made_with": made_with,
        **description,
    }
    out.mkdir(parents=True, exist_ok=True)
    file = out / MODEL[format]
    temporary = file.with_name(f"partial-{file.name}")  # torch looks at the ending
    try:
        write(temporary)
        with temporary.open("rb") as written:
            values["sha256"] = {file.name: hashlib.file_digest(written, "sha256").hexdigest()}
        shutil.move(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    write_atomic(out / "model.json", json.dumps(values, indent=1) + "\n")


def _torch_program(step: Any) -> tuple[Callable[[Path], None], dict[str, str]]:
    from fptt_dist.models.programs.torch_program import save_torch_program, torch_program

    program = torch_program(step)
    return lambda file: save_torch_program(program, file), {"torch": torch.__version__}


def _onnx_program(step: Any) -> tuple[Callable[[Path], None], dict[str, str]]:
    from fptt_dist.models.programs.onnx_program import onnx_program

    model = onnx_program(step)
    opset = next(each.version for each in model.opset_import if each.domain == "")

    def write(file: Path) -> None:
        file.write_bytes(model.SerializeToString())

    return write, {"torch": torch.__version__, "opset": str(opset)}


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
