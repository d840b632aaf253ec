"""What a checkpoint of a run holds, and how a run goes on from one.

    model, optimizer, task .safetensors, state.json     equal on all workers: written once
    strategy.safetensors                                what the strategy shares (Z, μ̄, agreed points)
    rank/<r>/model, optimizer .safetensors              where each worker has its own W, W̄, u and moments (consensus),
                                                        or a part of them: pieces.json says which (fsdp, deepspeed)
    rank/<r>/strategy, loss, random, carried, state     μ_r, an agreement under way, estimates, random streams, states

With the same number of workers a run goes on bit for bit. With another one, or another strategy: what was equal
everywhere stays as it is, and parts are dealt anew; W, W̄, u and moments of which there were several copies become their
mean over the workers (weighted by their shares of the batch; W̄ ← Z with worker duals); μ_r ← 0, an agreement under way
is dropped, random streams start afresh from (seed, rank, batch, workers).
"""

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fptt_dist.config import ConfigError
from fptt_dist.parallel import StrategyState
from fptt_dist.training import build, snapshot
from fptt_dist.training.checkpoint import Files, read_tensors, read_values
from fptt_dist.training.nested import flatten, unflatten
from fptt_dist.training.position import Best, Position
from fptt_dist.training.saved_state import MODEL, OPTIMIZER, PIECES, SavedState, described

if TYPE_CHECKING:
    from fptt_dist.training.trainer import Trainer

LOG = logging.getLogger("fptt_dist")


def contents_of(trainer: "Trainer") -> tuple[Files, Files]:
    """The files that rank 0 writes for all, and this worker's own."""
    strategy = trainer.strategy
    pieces = strategy.pieces()
    optimizer_tensors, optimizer_values = snapshot.optimizer_files(pieces, trainer.optimizer)
    weights: dict[str, Any] = {
        MODEL: snapshot.model_tensors(pieces, trainer.network),
        OPTIMIZER: optimizer_tensors,
    }
    if len(strategy.copies()) < strategy.world:
        # flat, so that a run of elements can be read; a number stays one
        weights = {
            file: {name: t.reshape(-1) if t.dim() else t for name, t in tensors.items()}
            for file, tensors in weights.items()
        }
        weights[PIECES] = described(pieces)
    state = strategy.state_dict()
    random_tensors, random_values = snapshot.random_files(trainer.device)
    carried: dict[str, Tensor] = {}
    skeleton = flatten(trainer.states, carried, "carried")
    shared: dict[str, Any] = {
        "task.safetensors": trainer.task.state_dict(),
        "strategy.safetensors": state.shared,
        "state.json": {
            "run_id": trainer.folder.run_id if strategy.rank == 0 else None,
            "strategy": type(strategy).__name__,
            "replicated": strategy.replicated,
            "copies": strategy.copies(),
            "shapes": trainer.shapes,
            "shares": trainer.shares,
            "voices": strategy.voices,
            "position": asdict(trainer.position),
            "best": trainer.best and asdict(trainer.best),
            "lr_schedule": trainer.lr_schedule.state_dict(),
            "validations": trainer.trigger and trainer.trigger.values,
        },
    }
    own: dict[str, Any] = {
        "loss.safetensors": trainer.task.loss.state_dict(),
        "random.safetensors": random_tensors,
        "strategy.safetensors": state.own,
        "carried.safetensors": carried,
        "state.json": {"random": random_values, "carried": skeleton, "optimizer": optimizer_values},
    }
    (shared if strategy.replicated else own).update(weights)
    return shared, own


def restore(trainer: "Trainer", folder: Path) -> None:
    """Go back to the state of a checkpoint: bit for bit with as many workers as wrote it.

    Raises:
        ConfigError: it is another model's, or holds what cannot be dealt to another number of workers.
    """
    strategy = trainer.strategy
    values = read_values(folder, "state.json")
    trainer.position = Position(**values["position"])
    trainer.best = values["best"] and Best(**values["best"])
    trainer.lr_schedule.load_state_dict(values["lr_schedule"])
    if trainer.trigger is not None:
        trainer.trigger.values = values["validations"]
    trainer.task.load_state_dict(read_tensors(folder, "task.safetensors"))
    kept = StrategyState(shared=read_tensors(folder, "strategy.safetensors"))
    same_strategy = values["strategy"] == type(strategy).__name__
    then, now = (
        [len(values["shares"]), values["voices"], values["copies"]],
        [strategy.world, strategy.voices, strategy.copies()],
    )
    if then == now and same_strategy:
        own = _rank(folder, strategy.rank)
        ranks, mine = next(copy for copy in _copies(folder, values) if strategy.rank in copy[0])
        _load(trainer, folder, values, SavedState([mine], [1.0]), [0] if values["replicated"] else ranks)
        kept.own = read_tensors(own, "strategy.safetensors")
        own_values = read_values(own, "state.json")
        trainer.task.loss.load_state_dict(read_tensors(own, "loss.safetensors"))
        carried = unflatten(own_values["carried"], read_tensors(own, "carried.safetensors"))
        trainer.states = carried and [_to(state, trainer.device) for state in carried]
        snapshot.load_random(read_tensors(own, "random.safetensors"), own_values["random"], trainer.device)
    else:
        _deal_anew(trainer, folder, values)
    strategy.load_state_dict(kept if same_strategy else StrategyState(), trainer.position.updates)


def load_agreed(trainer: "Trainer", folder: Path) -> None:
    """The weights, W̄, u and moments that a checkpoint's workers agree on, the same on every worker.

    Raises:
        ConfigError: it is another model's.
    """
    values = read_values(folder, "state.json")
    trainer.task.load_state_dict(read_tensors(folder, "task.safetensors"))
    copies = _copies(folder, values)
    shares = [math.fsum(values["shares"][rank] for rank in ranks) for ranks, _ in copies]
    agreed = read_tensors(folder, "strategy.safetensors").items()
    centers = {name.removeprefix("center/"): z for name, z in agreed if name.startswith("center/")}  # Z
    ranks = [0] if values["replicated"] else list(range(len(values["shares"])))
    _load(trainer, folder, values, SavedState([folders for _, folders in copies], shares, centers), ranks)


def _load(trainer: "Trainer", folder: Path, values: dict[str, Any], saved: SavedState, ranks: list[int]) -> None:
    """Weights and the optimizer's state, this worker's part of them; `ranks`: who wrote what is read."""
    pieces = trainer.strategy.pieces()
    snapshot.check_model(values["shapes"], trainer.shapes, folder)
    snapshot.load_model(pieces, trainer.network, saved)
    plain = [read_values(_rank(folder, rank), "state.json")["optimizer"] for rank in ranks]
    snapshot.load_optimizer(pieces, trainer.optimizer, saved, snapshot.joined(plain))
    trainer.strategy.changed()


def _deal_anew(trainer: "Trainer", folder: Path, values: dict[str, Any]) -> None:
    """What each of the workers then had, to the workers now."""
    then, strategy = len(values["shares"]), trainer.strategy
    own = [_rank(folder, rank) for rank in range(then)]
    how = f"{folder} was written by {then} process{'es' if then > 1 else ''}, this run has {strategy.world}"
    back = f"start {then}"
    if then == strategy.world:
        how, back = f"{folder} was written with another parallel.strategy", "keep parallel.strategy"
    if any(read_values(rank, "state.json")["carried"] for rank in own):
        raise ConfigError(
            f"{how}, and the recurrent states that go from batch to batch cannot be dealt anew: {back}, or save "
            "at an epoch's end, where there are none"
        )
    try:
        states = [read_tensors(rank, "loss.safetensors") for rank in own]
        trainer.task.loss.load_state_dict(trainer.task.loss.dealt_anew(states, first=strategy.rank == 0))
    except ValueError as error:
        raise ConfigError(f"{how}: {error}: {back}") from error
    load_agreed(trainer, folder)
    trainer.states = None
    build.seed_worker(trainer.config.seed, strategy.rank, trainer.position.batch, strategy.world)
    if strategy.rank == 0:
        what = "are theirs" if values["replicated"] or len(values["copies"]) == 1 else "are the mean of theirs"
        LOG.warning("%s: weights and moments %s, random streams start afresh", how, what)


def _copies(folder: Path, values: dict[str, Any]) -> list[tuple[list[int], list[Path]]]:
    """Each copy's workers, and the folders that it is in."""
    if values["replicated"]:
        return [(list(range(len(values["shares"]))), [folder])]
    return [(ranks, [_rank(folder, rank) for rank in ranks]) for ranks in values["copies"]]


def _rank(folder: Path, rank: int) -> Path:
    return folder / "rank" / str(rank)


def _to(state: Any, device: torch.device) -> Any:
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _to(value, device) for key, value in state.items()}
    return None if state is None else type(state)(_to(value, device) for value in state)
