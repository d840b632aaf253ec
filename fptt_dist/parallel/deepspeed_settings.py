"""What DeepSpeed is started with: our configuration, and a user's own DeepSpeed JSON file merged in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.nearest import did_you_mean

ONE_GROUP = 10**15
"""Stage 3's sub_group_size, so large that one step of the optimizer, with one global norm, is the whole update."""

_ZERO = "zero_optimization"
_OFFLOAD = f"{_ZERO}.offload_optimizer"
_STAGE_3 = (
    "allgather_sequential gather_16bit_weights_on_model_save max_live_parameters max_reuse_distance "
    "model_persistence_threshold module_granularity_threshold param_persistence_threshold prefetch_bucket_size "
    "use_all_reduce_for_fetch_params"
)
_PASSED = {  # what a file may say, by section; DeepSpeed checks the values
    "": "activation_checkpointing aio comet comms_logger communication_data_type csv_monitor disable_allgather "
    "disable_python_gc dump_state flops_profiler gradient_predivide_factor log_level memory_breakdown "
    "prescale_gradients steps_per_print tensorboard timers vocabulary_size wall_clock_breakdown wandb",
    "bf16": "immediate_grad_update",
    "data_types": "buffer_dtype grad_accum_dtype keep_in_fp32_modules",
    _ZERO: "allgather_bucket_size allgather_partitions contiguous_gradients cpu_offload_use_pin_memory "
    "enable_sanity_checks ignore_unused_parameters leaf_module log_trace_cache_warnings memory_efficient_linear "
    "overlap_comm override_module_apply reduce_bucket_size reduce_scatter stage3_gather_fp16_weights_on_model_save "
    f"sub_group_size use_multi_rank_bucket_allreduce {_STAGE_3} "
    f"stage3_{_STAGE_3.replace(' ', ' stage3_')}",
    _OFFLOAD: "buffer_count cpuadam_cores_perc fast_init nvme_path pin_memory pipeline_read pipeline_write",
}


@dataclass(frozen=True)
class _Rule:
    """A setting that a file may have with one value only, which is then ours or DeepSpeed's default.

    Attributes:
        but: why another value is refused.
        type: what to type instead, {} standing for the value refused; or what for which value, as JSON.
        fits: the value allowed; None: any that switches the setting off.
        decided: what is to be typed gives the file its way, so that the setting may stay in it.
    """

    but: str
    type: str | Mapping[str, str] = ""
    fits: Any = None
    decided: bool = False

    def allows(self, value: Any) -> bool:
        """Whether `value` says nothing new."""
        if self.fits is not None:
            return value == self.fits
        if isinstance(value, dict):
            return not value or value.get("enabled") in (False, "auto") or value.get("device") == "none"
        return value is False

    def refusal(self, value: Any) -> str:
        """What follows the setting in a message."""
        text = json.dumps(value)
        instead = self.type.format(text) if isinstance(self.type, str) else self.type.get(text, "")
        link = f"type {instead}, {'or' if self.decided else 'and'} " if instead else ""
        return f", but {self.but}: {link}take it out of the file"


_STEP = _Rule("it takes the optimizer's step apart, and FPTT needs one norm over all of it")
_SHARED = {  # refused for one reason
    _Rule("DeepSpeed does not have it any more"): "compression_training eigenvalue elasticity graph_harvesting "
    "progressive_layer_drop quantize_training sparse_attention sparse_gradients zero_optimization.legacy_stage1 "
    "zero_optimization.mics_hierarchical_params_gather zero_optimization.zeropp_loco_param",
    _Rule(
        "FPTT keeps weights in fp32 and computes in fp32 or bf16", "train.precision=bf16"
    ): "amp data_types.param_dtype bf16.bf16_master_weights_and_grads bf16.bf16_optimizer_states fp16 torch_autocast",
    _Rule("fptt-dist deals the examples"): "curriculum_learning data_efficiency dataloader_drop_last",
    _Rule("fptt-dist writes the checkpoints"): "checkpoint datastates_ckpt nebula zero_optimization.elastic_checkpoint "
    "zero_optimization.pipeline_loading_checkpoint",
    _Rule("only the batch is split, and what FPTT holds"): "data_parallel_size expert_parallel pipeline "
    "seq_parallel_communication_data_type sequence_parallel_size tensor_parallel use_data_before_expert_parallelism",
    _Rule("what is rounded would stay in FPTT's center and dual"): "weight_quantization "
    "zero_optimization.zero_quantized_gradients zero_optimization.zero_quantized_nontrainable_weights "
    "zero_optimization.zero_quantized_weights",
    _Rule("weights are not kept in the host's memory", "parallel.offload=true"): "zero_optimization.cpu_offload_param "
    "zero_optimization.offload_param",
    _STEP: "zero_optimization.offload_optimizer.super_offload zero_optimization.zenflow",
}
_RULES = {name: rule for rule, names in _SHARED.items() for name in names.split()} | {
    "autotuning": _Rule("it starts runs of its own", "fptt-dist sweep"),
    "bf16.check_grad_overflow": _Rule("by it DeepSpeed finds a gradient that is not finite", fits=True),
    "bfloat16": _Rule("it is called bf16 now", "train.precision=bf16"),
    "compile": _Rule("a compiled step has no place for FPTT's force"),
    "gradient_accumulation_steps": _Rule("fptt-dist adds micro-batches up", "a smaller train.micro_batch_size", fits=1),
    "gradient_allreduce_op": _Rule("FPTT's force is added to the mean of the gradients", fits="mean"),
    "gradient_clipping": _Rule("it would clip before the force is added", "train.max_norm={}", fits=0),
    "hybrid_engine": _Rule("it is for generating text"),
    "managed_gradient_accumulation": _Rule("fptt-dist tells where a window ends", fits=True),
    "optimizer": _Rule("FPTT is the optimizer", "optimizer.name=NAME and optimizer.lr=NUMBER"),
    "scheduler": _Rule("fptt-dist moves the learning rate", "schedule.name=NAME"),
    "train_batch_size": _Rule("train.batch_size decides", "train.batch_size={}"),
    "zero_allow_untested_optimizer": _Rule("FPTT is none of those that DeepSpeed has tested", fits=True),
    "zero_force_ds_cpu_optimizer": _Rule("FPTT is the optimizer", fits=False),
    f"{_ZERO}.compute_grad_norm": _Rule("by the norm DeepSpeed finds a gradient that is not finite", fits=True),
    f"{_ZERO}.cpu_offload": _Rule("parallel.offload decides", "parallel.offload=true"),
    f"{_ZERO}.load_from_fp32_weights": _Rule("fptt-dist reads the checkpoints", fits=True),
    f"{_ZERO}.mics_shard_size": _Rule("DeepSpeed does not have it any more", fits=-1),
    f"{_ZERO}.parameter_alignment": _Rule("FPTT's parts lie side by side"),
    f"{_ZERO}.round_robin_gradients": _Rule("FPTT's parts are in the order of the weights", fits=False),
    f"{_ZERO}.save_muon_momentum_buffer_in_memory": _Rule("FPTT is the optimizer"),
    f"{_ZERO}.zero_hpz_partition_size": _Rule("FPTT moves one copy of the weights", fits=1),
    f"{_OFFLOAD}.ratio": _Rule("DeepSpeed's AdamW would move the rest, not FPTT", fits=1),
}


def engine_settings(*, stage: int, bf16: bool, offload: bool, sequences: int, given: Path | None) -> dict[str, Any]:
    """What `deepspeed.initialize(config=…)` gets.

    Args:
        stage: 1, 2 or 3, what ZeRO splits.
        bf16: whether forward and backward compute in bf16.
        offload: whether the optimizer's parts stay in the host's memory.
        sequences: of one backward pass of this process.
        given: a user's DeepSpeed file. Its "auto" and null say nothing.

    Raises:
        ConfigError: the file cannot be read, is no JSON or no object, or, one per line, has settings that are unknown,
            that FPTT cannot honour, or that our configuration decides otherwise.
    """
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": sequences,
        "gradient_accumulation_steps": 1,
        "gradient_allreduce_op": "mean",
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
        _ZERO: {"stage": stage, "round_robin_gradients": False},
    }
    if stage == 3:
        settings[_ZERO] |= {"sub_group_size": ONE_GROUP, "stage3_param_persistence_threshold": 0}
        settings[_ZERO]["memory_efficient_linear"] = False
    if bf16 and (stage > 1 or offload):
        settings["data_types"] = {"grad_accum_dtype": "fp32"}  # micro-batches are not to be added up in bf16
    if offload:
        settings[_ZERO]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if given is not None:
        problems: list[str] = []
        _merge(settings, _read(given), "", _rules(stage, bf16, offload, sequences), given, problems)
        if problems:
            raise ConfigError("\n".join(problems))
    return settings


def _rules(stage: int, bf16: bool, offload: bool, sequences: int) -> dict[str, _Rule]:
    """All of them, for one configuration."""
    precision = {"true": "train.precision=bf16", "false": "train.precision=fp32"}
    stages = {"0": "parallel.strategy=gradient"} | {str(other): f"parallel.stage={other}" for other in (1, 2, 3)}
    places = {'"cpu"': "parallel.offload=true", '"none"': "parallel.offload=false"}
    kept = "parallel.offload=true keeps it in the host's memory" if offload else "parallel.offload=false"
    rules = _RULES | {
        "train_micro_batch_size_per_gpu": _Rule(
            f"a process computes {sequences} sequences at a time",
            "train.micro_batch_size={}",
            fits=sequences,
            decided=True,
        ),
        "bf16.enabled": _Rule(precision[json.dumps(bf16)], precision, fits=bf16, decided=True),
        f"{_ZERO}.stage": _Rule(f"parallel.stage={stage}", stages, fits=stage, decided=True),
        f"{_OFFLOAD}.device": _Rule(kept, places, fits="cpu" if offload else "none", decided=True),
    }
    if stage == 3:
        persistent = _Rule("a weight kept whole would miss FPTT's step", fits=0)
        rules |= {
            f"{_ZERO}.sub_group_size": _Rule(_STEP.but, fits=ONE_GROUP),
            f"{_ZERO}.param_persistence_threshold": persistent,
            f"{_ZERO}.stage3_param_persistence_threshold": persistent,
            f"{_ZERO}.memory_efficient_linear": _Rule("it would replace torch's own function for good", fits=False),
        }
    if stage == 1 and bf16 and not offload:
        rules["data_types.grad_accum_dtype"] = _Rule(
            "with it DeepSpeed's stage 1 is another optimizer", "parallel.stage=2", fits="bf16"
        )
    return rules


def _merge(
    settings: dict[str, Any],
    values: dict[str, Any],
    section: str,
    rules: dict[str, _Rule],
    file: Path,
    problems: list[str],
) -> None:
    """Add the file's `values` of a section to ours; what may not be there is added to `problems`."""
    inside = f"{section}." if section else ""
    ruled = [key.removeprefix(inside) for key in (*rules, *_PASSED) if key.startswith(inside)]
    known = {*_PASSED[section].split(), *(name for name in ruled if name and "." not in name)}
    for name, value in values.items():
        key = f"{inside}{name}"
        silent = value is None or value == "auto"
        if name not in known:
            near = did_you_mean(name, sorted(known), section=section)
            problems.append(f"{key} in {file} is no setting of DeepSpeed known here{near}")
        elif key in _PASSED:
            if isinstance(value, dict):
                _merge(settings.setdefault(name, {}), value, key, rules, file, problems)
            elif not silent:
                problems.append(f"{key}={json.dumps(value)} in {file} must be an object, {{…}}")
        elif key in rules:
            if not silent and not rules[key].allows(value):
                shown = "" if isinstance(value, dict | list) else f"={json.dumps(value)}"
                problems.append(f"{key}{shown} in {file}{rules[key].refusal(value)}")
        elif not silent:
            settings[name] = value


def _read(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{path}: the key {name} is given twice")
        return dict(pairs)

    def no_number(text: str) -> None:
        raise ConfigError(f"{path}: not JSON: {text}")

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not an object of settings, {{…}}")
    return values
