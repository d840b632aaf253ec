"""Sharded by DeepSpeed's ZeRO, with FPTT as its client optimizer.

stage 1   optimizer state, W̄, u and a master copy of W are sharded into flat partitions, one per worker
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
from fptt_dist.parallel.comm.comm_estimate import CommEstimate
from fptt_dist.parallel.comm.communicator import Communicator, GroupCommunicator
from fptt_dist.parallel.comm.environment import set_variables
from fptt_dist.parallel.comm.process_group import START_SECONDS, limit_waits
from fptt_dist.parallel.control import Control
from fptt_dist.parallel.optimizer_view import Measurement, OptimizerView
from fptt_dist.parallel.placement.deepspeed_settings import check_values, engine_settings
from fptt_dist.parallel.placement.shard import ParameterShard
from fptt_dist.parallel.placement.sharded import Sharded

BUCKET = 500_000_000  # elements: DeepSpeed's default for one bucket, and it reserves the memory for them
MISSING = "parallel.strategy=deepspeed needs DeepSpeed: pip install -e '.[deepspeed]'"


class DeepspeedZero(Sharded):
    """ZeRO stage 1, 2 or 3.

    Args:
        workers: all workers.
        weight: this worker's share of the batch, in (0, 1]; the shares sum to 1.
        stage: 1, 2 or 3.
        sequences: number of sequences in one backward pass of this worker.
        bf16: whether weights and gradients are sent, and the module computes, in bf16; the master copy is in float32.
        offload: whether the partitions stay in host memory.
        given: the user's own DeepSpeed settings, a JSON file.

    Raises:
        ConfigError: DeepSpeed is not installed, or the file sets what it may not set; in `attach`, a value that
            DeepSpeed refuses.
    """

    def __init__(
        self,
        workers: Communicator,
        weight: float,
        *,
        stage: int,
        sequences: int,
        bf16: bool = False,
        offload: bool = False,
        given: Path | None = None,
    ) -> None:
        super().__init__(workers, weight)
        self.stage = stage
        self.computes_in_bf16 = bf16
        self._settings = engine_settings(stage=stage, bf16=bf16, offload=offload, sequences=sequences, given=given)
        self._given = given
        self._differentiated = False

    def attach(self, optimizer: OptimizerView, control: Control) -> None:
        """See `Placement.attach`: the engine takes model and optimizer over."""
        deepspeed = _import(self.workers.device.type)
        assert len(optimizer.param_groups) == 1  # the engine would clip each by a norm of its own
        self._settings["zero_optimization"].setdefault("reduce_bucket_size", min(BUCKET, self._numbers))
        exact = (
            {name: p.detach().clone() for name, p in self.network.named_parameters()} if self.computes_in_bf16 else {}
        )
        with warnings.catch_warnings(), set_variables(self._place):
            warnings.simplefilter("ignore")
            if self._given is not None:
                check_values(self._settings, self._given)
            self._engine, *_ = deepspeed.initialize(
                model=self.network, optimizer=optimizer, config=self._settings, dist_init_required=False
            )
        # The engine communicates in a process group of its own, which must not wait longer than others.
        group = self._engine.data_parallel_group
        limit_waits(group, START_SECONDS)
        self._engines = GroupCommunicator(list(range(self.workers.world)), group, self.workers.device)
        self._zero = self._engine.optimizer
        self.module = self._engine
        parts = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        self._flat: Tensor = getattr(self._zero, parts)[0]
        self._shards = self._partitions() if self.stage == 3 else self._fragments()
        self._show_partition(optimizer)
        super().attach(optimizer, control)
        self._norms: dict[str, Tensor] = {}
        self._measure: Measurement | None = None
        optimizer.register_step_pre_hook(self._before_update)
        if self.computes_in_bf16:
            self.network.register_forward_pre_hook(lambda _, given: _in(torch.bfloat16, given))
            self.network.register_forward_hook(lambda _, given, outputs: _in(torch.float32, outputs))
            with torch.no_grad():  # the engine's master copy began with weights rounded to bf16
                for shard in self._shards:
                    shard.view(shard.tensor).copy_(exact[shard.name].reshape(-1)[shard.start : shard.stop])
            self.on_params_written()

    def on_params_written(self) -> None:
        """See `Placement.on_params_written`: the module's weights are copies of the partitions."""
        with self.collective_errors():
            if self.stage == 3:
                self._zero._partition_all_parameters()
                self._zero._reassign_or_swap_out_partitioned_parameters(0)
            else:
                self._zero.update_lp_params()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Placement.backward`; the engine averages the gradients meanwhile."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._relative_weight, scale_wrt_gas=False)
        self._differentiated = True

    def gradients(self) -> list[Tensor | None]:
        """See `Placement.gradients`; the engine has them, and says at the update whether they are finite."""
        return [None] * len(self._shards)

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """See `Placement.collective_errors`."""
        with set_variables(self._place), super().collective_errors():
            yield

    def step(
        self, closure: Callable[[], Any] | None = None, *, measure: Measurement | None = None
    ) -> dict[str, Tensor]:
        """See `Placement.step`; the engine skips an update whose gradient is not finite."""
        if not self._differentiated:
            return {}
        self._measure = measure
        averaged = self._zero.averaged_gradients.get(0)
        self._engine.step()
        if self._zero.overflow:
            self.control.learn(finite=False)
            self._look_at(averaged)
        self._count()
        self._show_partition(self.optimizer)
        self._differentiated = False
        norms, self._norms = self._norms, {}
        return norms

    def communicators(self) -> list[Communicator]:
        """Return the communicator of all workers, and that of the engine's own group."""
        return [self.workers, self._engines]

    def comm_estimate(self, updates: int) -> CommEstimate:
        """Estimate gradients and weights per update, in stage 3 the weights twice, each half of an all-reduce."""
        half = self._numbers * (2 if self.computes_in_bf16 else 4) // 2
        times = 3 if self.stage == 3 else 2
        what = "weights and gradients, at every update"
        return CommEstimate(float(times * updates), float(times * updates * half), half, what)

    @property
    def _place(self) -> dict[str, str]:
        """Environment variable from which the engine takes its device."""
        return {"LOCAL_RANK": str(self.workers.device.index or 0)}

    def _shard(self, model: nn.Module) -> None:
        """Do nothing: the engine shards the model, and needs the optimizer for it."""

    def _show_partition(self, optimizer: OptimizerView) -> None:
        """Put the partition into the optimizer's group, out of which stage 3 takes it between updates."""
        optimizer.param_groups[0]["params"] = [self._flat]

    def _before_update(self, *_: Any) -> None:
        """Measure the norms inside the engine's step, when the partition has its averaged gradient."""
        if self._measure is not None:
            self._norms = self._measure()

    def _look_at(self, averaged: list[Tensor] | None) -> None:
        """Record which parameter's gradient was not finite, as far as this worker holds it."""
        if averaged:
            flat = torch.cat([gradient.reshape(-1) for gradient in averaged])
            held = [flat[shard.local_slice] if shard.local_slice.stop <= len(flat) else None for shard in self._shards]
            self.control.observe(flat.new_zeros(()), held)  # the loss was observed before

    def _fragments(self) -> list[ParameterShard]:
        """Return the shards of stages 1 and 2: one partition of the concatenated parameters."""
        found = []
        for name, p in self.network.named_parameters():
            mapping = getattr(p, "_hp_mapping", None)
            if mapping is None:  # it is in other workers' partitions
                continue
            inside, outside = mapping.hp_fragment_address, mapping.lp_fragment_address
            at = slice(inside.start, inside.start + inside.numel)
            found.append(ParameterShard(name, tuple(p.shape), outside.start, self._flat, at))
        return found

    def _partitions(self) -> list[ParameterShard]:
        """Return the shards of stage 3: a partition of each parameter, concatenated."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        found, offset = [], 0
        for p in self._zero.fp16_groups[0]:
            size = p.partition_numel()
            start = min(self.workers.rank * size, p.ds_numel)
            held = min(size, p.ds_numel - start)
            found.append(
                ParameterShard(names[id(p)], tuple(p.ds_shape), start, self._flat, slice(offset, offset + held))
            )
            with torch.no_grad():  # the padding is memory as it was, and norms go over it
                self._flat[offset + held : offset + size].zero_()
            offset += size
        return found


def _in(dtype: torch.dtype, values: Any) -> Any:
    """Return `values` with their floating-point tensors cast to another type."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def _import(device: str) -> Any:
    """Import DeepSpeed for the device, without what an earlier run in this process left in it."""
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
    # DeepSpeed calls functions that torch has renamed.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    groups._release_process_group_references()
    deepspeed.comm.comm.cdb = None
    # Stage 3 numbers modules and parameters to compare them between workers, and would keep counting across runs.
    counting: Any = DeepSpeedZeRoOffload._register_deepspeed_module
    counting.__defaults__[0][0] = 0
    Init.param_id = 0
    return deepspeed
