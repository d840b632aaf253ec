"""The settings that DeepSpeed is started with: our configuration's, and those that a user's DeepSpeed file may add."""

import copy
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fptt_dist.config.errors import ConfigError
from fptt_dist.config.loading.suggest import did_you_mean
from fptt_dist.config.loading.text import read_settings

ONE_GROUP = 10**15
"""Stage 3's sub_group_size, so large that one step of the optimizer, with one global norm, is the whole update."""

_ZERO = "zero_optimization"
_OFFLOAD = f"{_ZERO}.offload_optimizer"
_GRADIENTS = "data_types.grad_accum_dtype"
ALLOWED = (
    "communication_data_type",
    "comms_logger",
    "flops_profiler",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
    "bf16.immediate_grad_update",
    _GRADIENTS,
    f"{_ZERO}.allgather_bucket_size",
    f"{_ZERO}.allgather_partitions",
    f"{_ZERO}.contiguous_gradients",
    f"{_ZERO}.ignore_unused_parameters",
    f"{_ZERO}.overlap_comm",
    f"{_ZERO}.reduce_bucket_size",
    f"{_ZERO}.reduce_scatter",
    f"{_ZERO}.use_multi_rank_bucket_allreduce",
    f"{_ZERO}.stage3_max_live_parameters",
    f"{_ZERO}.stage3_max_reuse_distance",
    f"{_ZERO}.stage3_prefetch_bucket_size",
    f"{_OFFLOAD}.pin_memory",
)
"""Settings that a file may have: how gradients and weights are communicated, and what is reported. DeepSpeed checks
the values."""

_OURS = {
    "amp": "train.precision",
    "bf16.enabled": "train.precision",
    _GRADIENTS: "parallel.zero_stage",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "train.max_norm",
    "optimizer": "optimizer.name",
    "scheduler": "schedule.name",
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    f"{_ZERO}.cpu_offload": "parallel.offload",
    f"{_ZERO}.offload_param": "parallel.offload",
    f"{_ZERO}.stage": "parallel.zero_stage",
    f"{_OFFLOAD}.device": "parallel.offload",
}
"""Our key that decides what a file may not set."""


def engine_settings(*, stage: int, bf16: bool, offload: bool, sequences: int, given: Path | None) -> dict[str, Any]:
    """Return the settings for `deepspeed.initialize(config=…)`.

    Args:
        stage: 1, 2 or 3: what ZeRO shards.
        bf16: whether forward and backward compute in bf16.
        offload: whether the optimizer's shards stay in host memory.
        sequences: number of sequences in one backward pass of this worker.
        given: a user's DeepSpeed file. Its "auto" and null, sections that are off and values equal to ours are ignored.

    Raises:
        ConfigError: the file cannot be read, is no JSON or no object, or sets something else than `ALLOWED`.
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
        settings[_ZERO]["memory_efficient_linear"] = False  # it would replace torch's own function for good
    if bf16 and (stage > 1 or offload):
        settings["data_types"] = {"grad_accum_dtype": "fp32"}  # micro-batches are not to be added up in bf16
    if offload:
        settings[_ZERO]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if given is not None:
        another = bf16 and stage == 1 and not offload  # with that type DeepSpeed's stage 1 is another optimizer
        allowed = [key for key in ALLOWED if key != _GRADIENTS or not another]
        problems: list[str] = []
        _merge(settings, _read(given), "", allowed, given, problems)
        if problems:
            raise ConfigError("\n".join([*problems, f"a DeepSpeed file may set: {', '.join(allowed)}"]))
    return settings


def check_values(settings: dict[str, Any], given: Path) -> None:
    """Return if DeepSpeed takes the values that a user's file has set among its settings.

    Raises:
        ConfigError: it does not.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(settings))
    except ValidationError as error:
        problems = [f"{_key(each['loc'])}={json.dumps(each['input'])}: {each['msg']}" for each in error.errors()]
    except (ValueError, TypeError, AssertionError) as error:
        problems = [str(error)]
    else:
        return
    raise ConfigError(f"parallel.deepspeed_config={given}: DeepSpeed refuses its values: {'; '.join(problems)}")


def _key(location: tuple[int | str, ...]) -> str:
    """Return the name of a setting from the one within its section, which is all that DeepSpeed tells."""
    name = ".".join(map(str, location))
    return next((key for key in ALLOWED if key == name or key.endswith(f".{name}")), name)


def _merge(
    settings: dict[str, Any], values: dict[str, Any], section: str, allowed: list[str], file: Path, problems: list[str]
) -> None:
    """Add the file's `values` of a section to ours; what may not be there is added to `problems`."""
    known = [key.removeprefix(section) for key in (*allowed, *_OURS) if key.startswith(section)]
    for name, value in values.items():
        key = f"{section}{name}"
        if "." in name:  # it would equal an allowed key, and DeepSpeed would take no notice of it
            problems.append(f"{key} in {file}: DeepSpeed knows no name with a dot: write one section inside the other")
            continue
        is_section = any(each.startswith(f"{name}.") for each in known)
        ours = settings.get(name, "none" if key == f"{_OFFLOAD}.device" else None)
        if value is None or value == "auto" or (value == ours and not isinstance(value, dict)):
            continue
        if is_section and isinstance(value, dict):
            _merge(settings.setdefault(name, {}), value, f"{key}.", allowed, file, problems)
        elif key in allowed:
            settings[name] = value
        elif is_section or not _is_off(value):
            decides = f", where {_OURS[key]} decides" if key in _OURS else ""
            names = sorted(
                {each.removeprefix(section).partition(".")[0] for each in allowed if each.startswith(section)}
            )
            near = "" if decides or name in names else did_you_mean(name, names, section=section.removesuffix("."))
            shown = "" if isinstance(value, dict | list) else f"={json.dumps(value)}"
            problems.append(
                f"{key}{shown} in {file} is not among what a DeepSpeed file may set here{decides}: take it out{near}"
            )


def _is_off(value: Any) -> bool:
    """Return whether `value` is a section that is switched off."""
    return isinstance(value, dict) and (
        not value or value.get("enabled") in (False, "auto") or value.get("device") == "none"
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ConfigError(f"{path}: the key {name} is given twice")
            found[name] = value
        return found

    def no_number(text: str) -> None:
        raise ConfigError(f"{path}: not JSON: {text}")

    try:
        values = json.loads(read_settings(path), object_pairs_hook=unique, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not JSON: its values are nested too deep") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not an object of settings, {{…}}")
    return values
