"""Sharded by DeepSpeed's ZeRO, with FPTT as its client optimizer.

stage 1   moments, W̄, u and a master copy of W are split into flat partitions, one a worker
stage 2   so are the averaged gradients
stage 3   so are the weights that the module computes with
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fptt_dist.config.errors import ConfigError
from fptt_dist.parallel.collectives import Communicator, GroupCommunicator
from fptt_dist.parallel.connection import START_SECONDS, limit_waits
from fptt_dist.parallel.deepspeed_settings import engine_settings
from fptt_dist.parallel.environment import set_variables
from fptt_dist.parallel.pieces import Piece
from fptt_dist.parallel.sharded import Sharded
from fptt_dist.parallel.strategy import OptimizerView, Plan

BUCKET = 500_000_000  # numbers: DeepSpeed's own choice of what travels at once, and is reserved for that
MISSING = "parallel.strategy=deepspeed needs DeepSpeed: pip install 'fptt-dist[deepspeed]'"


class DeepspeedZero(Sharded):
    """ZeRO stage 1, 2 or 3.

    Args:
        everyone: all workers.
        weight: this worker's share of the batch, in (0, 1]; the shares sum to 1.
        stage: 1, 2 or 3.
        sequences: of one backward pass of this worker.
        bf16: whether weights and gradients travel, and the module computes, in bf16; the master copy is in float32.
        offload: whether the partitions stay in the host's memory.
        given: the user's own DeepSpeed settings, a JSON file.

    Raises:
        ConfigError: DeepSpeed is not installed, or the file asks for what cannot be.
    """

    def __init__(
        self,
        everyone: Communicator,
        weight: float,
        *,
        stage: int,
        sequences: int,
        bf16: bool = False,
        offload: bool = False,
        given: Path | None = None,
    ) -> None:
        super().__init__(everyone, weight)
        self.stage = stage
        self.casts = bf16
        self._settings = engine_settings(stage=stage, bf16=bf16, offload=offload, sequences=sequences, given=given)
        self._differentiated = False

    def attach(self, optimizer: OptimizerView) -> None:
        """See `Strategy.attach`: the engine takes model and optimizer over."""
        deepspeed = _import(self._loss.device.type)
        assert len(optimizer.param_groups) == 1  # the engine would clip each by a norm of its own
        self._settings["zero_optimization"].setdefault("reduce_bucket_size", min(BUCKET, self._numbers))
        exact = {name: p.detach().clone() for name, p in self._network.named_parameters()} if self.casts else {}
        with warnings.catch_warnings(), set_variables(self._place):
            warnings.simplefilter("ignore")
            self._engine, *_ = deepspeed.initialize(
                model=self._network, optimizer=optimizer, config=self._settings, dist_init_required=False
            )
        # It travels in a process group of its own, which must not wait longer than others.
        group = self._engine.data_parallel_group
        limit_waits(group, START_SECONDS)
        self._engines = GroupCommunicator(list(range(self.world)), group, self.everyone.device)
        self._zero = self._engine.optimizer
        self.module = self._engine
        parts = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        self._flat: Tensor = getattr(self._zero, parts)[0]
        self._pieces = self._partitions() if self.stage == 3 else self._fragments()
        self._show_partition(optimizer)
        super().attach(optimizer)
        self._norms: dict[str, Tensor] = {}
        self._measure = False
        optimizer.register_step_pre_hook(self._before_update)
        if self.casts:
            self._network.register_forward_pre_hook(lambda _, given: _in(torch.bfloat16, given))
            self._network.register_forward_hook(lambda _, given, outputs: _in(torch.float32, outputs))
            with torch.no_grad():  # the engine's master copy began with weights rounded to bf16
                for piece in self._pieces:
                    piece.of(piece.tensor).copy_(exact[piece.name].reshape(-1)[piece.start : piece.stop])
            self.changed()

    def changed(self) -> None:
        """See `Strategy.changed`: the module's weights are copies of the partitions."""
        with self.guarding():
            if self.stage == 3:
                self._zero._partition_all_parameters()
                self._zero._reassign_or_swap_out_partitioned_parameters(0)
            else:
                self._zero.update_lp_params()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Strategy.backward`; the engine averages the gradients on the way."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._relative_weight, scale_wrt_gas=False)
        self._loss += loss.detach()
        self._differentiated = True
        if last:
            self._watch.note(self._loss, [None] * len(self._pieces))
            self._finite &= self._watch.finite()

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """See `Strategy.guarding`."""
        with set_variables(self._place), super().guarding():
            yield

    def step(self, closure: Callable[[], Any] | None = None, *, measure: bool = False) -> dict[str, Tensor]:
        """See `Strategy.step`; the engine skips an update whose gradient is not finite."""
        if not self._differentiated:
            return {}
        self._measure = measure
        averaged = self._zero.averaged_gradients.get(0)
        self._engine.step()
        if self._zero.overflow:
            self._finite &= False
            self._look_at(averaged)
        self._count()
        self._show_partition(self.optimizer)
        self._loss.zero_()
        self._differentiated = False
        norms, self._norms = self._norms, {}
        return norms

    def communicators(self) -> list[Communicator]:
        """All, and all in the engine's group."""
        return [self.everyone, self._engines]

    def plan(self, updates: int) -> Plan:
        """The gradients and the weights, at each update, in stage 3 the weights twice: each half of an all-reduce."""
        half = self._numbers * (2 if self.casts else 4) // 2
        times = 3 if self.stage == 3 else 2
        what = "weights and gradients, at every update"
        return Plan(float(times * updates), float(times * updates * half), half, what)

    @property
    def _place(self) -> dict[str, str]:
        """How the engine is told its device."""
        return {"LOCAL_RANK": str(self.everyone.device.index or 0)}

    def _shard(self, model: nn.Module) -> None:
        """The engine does it, which wants the optimizer too."""

    def _show_partition(self, optimizer: OptimizerView) -> None:
        """Stage 3 takes the partition out of the optimizer's group between updates."""
        optimizer.param_groups[0]["params"] = [self._flat]

    def _before_update(self, *_: Any) -> None:
        """Within the engine's step, when the partition has its averaged gradient."""
        if self._measure:
            self._norms = self.optimizer.norms()

    def _look_at(self, averaged: list[Tensor] | None) -> None:
        """Remember whose gradient was not finite, as far as this worker has it."""
        if averaged:
            flat = torch.cat([gradient.reshape(-1) for gradient in averaged])
            held = [flat[piece.at] if piece.at.stop <= len(flat) else None for piece in self._pieces]
            self._watch.note(self._loss, held)

    def _fragments(self) -> list[Piece]:
        """Stages 1 and 2: a partition of all parameters one after the other."""
        found = []
        for name, p in self._network.named_parameters():
            mapping = getattr(p, "_hp_mapping", None)
            if mapping is None:  # it is in other workers' partitions
                continue
            inside, outside = mapping.hp_fragment_address, mapping.lp_fragment_address
            at = slice(inside.start, inside.start + inside.numel)
            found.append(Piece(name, tuple(p.shape), outside.start, self._flat, at))
        return found

    def _partitions(self) -> list[Piece]:
        """Stage 3: a partition of each parameter, one after the other."""
        names = {id(p): name for name, p in self._network.named_parameters()}
        found, offset = [], 0
        for p in self._zero.fp16_groups[0]:
            size = p.partition_numel()
            start = min(self.rank * size, p.ds_numel)
            held = min(size, p.ds_numel - start)
            found.append(Piece(names[id(p)], tuple(p.ds_shape), start, self._flat, slice(offset, offset + held)))
            with torch.no_grad():  # the padding is memory as it was, and norms go over it
                self._flat[offset + held : offset + size].zero_()
            offset += size
        return found


def _in(dtype: torch.dtype, values: Any) -> Any:
    """The floating-point tensors among `values` in another type."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def _import(device: str) -> Any:
    """DeepSpeed, for the device, without what an earlier run in this process left in it."""
    with warnings.catch_warnings(), set_variables({"DS_ACCELERATOR": device, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}):
        warnings.simplefilter("ignore")
        try:
            import deepspeed
        except ImportError as error:
            raise ConfigError(MISSING) from error
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import groups, logger

    logger.setLevel(os.environ.get("DS_LOG_LEVEL", "ERROR").upper())
    logger.propagate = False
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a C++ operator that only inference uses
    # DeepSpeed calls what torch has given other names.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    groups._release_process_group_references()
    deepspeed.comm.comm.cdb = None
    # Stage 3 compares the numbers of modules and parameters, which go on from run to run, between the workers.
    counting: Any = DeepSpeedZeRoOffload._register_deepspeed_module
    counting.__defaults__[0][0] = 0
    Init.param_id = 0
    return deepspeed
