"""What DeepSpeed is started with, and what a user reads about a DeepSpeed file that FPTT cannot honour."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.parallel.deepspeed_settings import ONE_GROUP, engine_settings

FILE = Path("ds.json")
ZERO = "zero_optimization"
CHOICES = list(itertools.product((1, 2, 3), (False, True), (False, True)))
FIXED = "take it out of the file"
PRECISION = f"but FPTT keeps weights in fp32 and computes in fp32 or bf16: type train.precision=bf16, and {FIXED}"
GONE = f"but DeepSpeed does not have it any more: {FIXED}"
DATA = f"but fptt-dist deals the examples: {FIXED}"
CHECKPOINTS = f"but fptt-dist writes the checkpoints: {FIXED}"
SPLIT = f"but only the batch is split, and what FPTT holds: {FIXED}"
ROUNDED = f"but what is rounded would stay in FPTT's center and dual: {FIXED}"
HOST = f"but weights are not kept in the host's memory: type parallel.offload=true, and {FIXED}"
APART = f"but it takes the optimizer's step apart, and FPTT needs one norm over all of it: {FIXED}"
OURS = f"but FPTT is the optimizer: {FIXED}"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as deepspeed does on import, and leaves it


def settings(given: Any = None, **options: Any) -> dict[str, Any]:
    """With the file's text, or what is to be its JSON."""
    if given is not None:
        FILE.write_text(given if isinstance(given, str) else json.dumps(given))
    chosen = {"stage": 2, "bf16": False, "offload": False, "sequences": 32} | options
    return engine_settings(**chosen, given=None if given is None else FILE)


def refusal(given: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(given, **options)
    return str(caught.value)


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def test_what_is_ours() -> None:
    assert settings() == {
        "train_micro_batch_size_per_gpu": 32,
        "gradient_accumulation_steps": 1,
        "gradient_allreduce_op": "mean",
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        ZERO: {"stage": 2, "round_robin_gradients": False},
    }
    assert settings(stage=3, offload=True)[ZERO] == {
        "stage": 3,
        "round_robin_gradients": False,
        "sub_group_size": ONE_GROUP,
        "memory_efficient_linear": False,
        "stage3_param_persistence_threshold": 0,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # decided by our configuration
        (
            f"{ZERO}.stage",
            3,
            f"zero_optimization.stage=3 in ds.json, but parallel.stage=2: type parallel.stage=3, or {FIXED}",
        ),
        (
            f"{ZERO}.stage",
            0,
            f"{ZERO}.stage=0 in ds.json, but parallel.stage=2: type parallel.strategy=gradient, or {FIXED}",
        ),
        (f"{ZERO}.stage", 4, f"{ZERO}.stage=4 in ds.json, but parallel.stage=2: {FIXED}"),
        (
            "bf16.enabled",
            True,
            f"bf16.enabled=true in ds.json, but train.precision=fp32: type train.precision=bf16, or {FIXED}",
        ),
        (
            f"{ZERO}.offload_optimizer.device",
            "cpu",
            f'{ZERO}.offload_optimizer.device="cpu" in ds.json, but parallel.offload=false: '
            f"type parallel.offload=true, or {FIXED}",
        ),
        (
            f"{ZERO}.offload_optimizer.device",
            "nvme",
            f'{ZERO}.offload_optimizer.device="nvme" in ds.json, but parallel.offload=false: {FIXED}',
        ),
        (
            "train_micro_batch_size_per_gpu",
            16,
            "train_micro_batch_size_per_gpu=16 in ds.json, but a process computes 32 sequences at a time: "
            f"type train.micro_batch_size=16, or {FIXED}",
        ),
        (
            "train_batch_size",
            64,
            "train_batch_size=64 in ds.json, but train.batch_size decides: "
            "type train.batch_size=64, and take it out of the file",
        ),
        (
            "gradient_accumulation_steps",
            4,
            "gradient_accumulation_steps=4 in ds.json, but fptt-dist adds micro-batches up: "
            f"type a smaller train.micro_batch_size, and {FIXED}",
        ),
        (
            f"{ZERO}.cpu_offload",
            True,
            f"{ZERO}.cpu_offload=true in ds.json, but parallel.offload decides: "
            f"type parallel.offload=true, and {FIXED}",
        ),
        # what FPTT cannot honour
        (
            "optimizer",
            {"type": "OneBitAdam"},
            "optimizer in ds.json, but FPTT is the optimizer: "
            f"type optimizer.name=NAME and optimizer.lr=NUMBER, and {FIXED}",
        ),
        (
            "scheduler",
            {"type": "WarmupLR"},
            f"scheduler in ds.json, but fptt-dist moves the learning rate: type schedule.name=NAME, and {FIXED}",
        ),
        (
            "gradient_clipping",
            1.5,
            "gradient_clipping=1.5 in ds.json, but it would clip before the force is added: "
            f"type train.max_norm=1.5, and {FIXED}",
        ),
        (
            "autotuning",
            {"enabled": True},
            f"autotuning in ds.json, but it starts runs of its own: type fptt-dist sweep, and {FIXED}",
        ),
        (
            "bf16.check_grad_overflow",
            False,
            "bf16.check_grad_overflow=false in ds.json, but by it DeepSpeed finds a gradient that is not finite: "
            + FIXED,
        ),
        (
            "bfloat16",
            {"enabled": True},
            f"bfloat16 in ds.json, but it is called bf16 now: type train.precision=bf16, and {FIXED}",
        ),
        (
            "compile",
            {"deepcompile": True},
            f"compile in ds.json, but a compiled step has no place for FPTT's force: {FIXED}",
        ),
        (
            "gradient_allreduce_op",
            "sum",
            'gradient_allreduce_op="sum" in ds.json, but FPTT\'s force is added to the mean of the gradients: ' + FIXED,
        ),
        ("hybrid_engine", {"enabled": True}, f"hybrid_engine in ds.json, but it is for generating text: {FIXED}"),
        (
            "managed_gradient_accumulation",
            False,
            "managed_gradient_accumulation=false in ds.json, but fptt-dist tells where a window ends: " + FIXED,
        ),
        (
            "zero_allow_untested_optimizer",
            False,
            "zero_allow_untested_optimizer=false in ds.json, but FPTT is none of those that DeepSpeed has tested: "
            + FIXED,
        ),
        ("zero_force_ds_cpu_optimizer", True, f"zero_force_ds_cpu_optimizer=true in ds.json, {OURS}"),
        (
            f"{ZERO}.compute_grad_norm",
            False,
            f"{ZERO}.compute_grad_norm=false in ds.json, "
            f"but by the norm DeepSpeed finds a gradient that is not finite: {FIXED}",
        ),
        (
            f"{ZERO}.load_from_fp32_weights",
            False,
            f"{ZERO}.load_from_fp32_weights=false in ds.json, but fptt-dist reads the checkpoints: {FIXED}",
        ),
        (f"{ZERO}.mics_shard_size", 2, f"{ZERO}.mics_shard_size=2 in ds.json, {GONE}"),
        (
            f"{ZERO}.parameter_alignment",
            True,
            f"{ZERO}.parameter_alignment=true in ds.json, but FPTT's parts lie side by side: {FIXED}",
        ),
        (
            f"{ZERO}.round_robin_gradients",
            True,
            f"{ZERO}.round_robin_gradients=true in ds.json, but FPTT's parts are in the order of the weights: {FIXED}",
        ),
        (
            f"{ZERO}.save_muon_momentum_buffer_in_memory",
            True,
            f"{ZERO}.save_muon_momentum_buffer_in_memory=true in ds.json, {OURS}",
        ),
        (
            f"{ZERO}.zero_hpz_partition_size",
            8,
            f"{ZERO}.zero_hpz_partition_size=8 in ds.json, but FPTT moves one copy of the weights: {FIXED}",
        ),
        (
            f"{ZERO}.offload_optimizer.ratio",
            0.5,
            f"{ZERO}.offload_optimizer.ratio=0.5 in ds.json, "
            f"but DeepSpeed's AdamW would move the rest, not FPTT: {FIXED}",
        ),
        (
            f"{ZERO}.offload_optimizer.super_offload",
            True,
            f"{ZERO}.offload_optimizer.super_offload=true in ds.json, {APART}",
        ),
        (f"{ZERO}.zenflow", {"topk_ratio": 0.1}, f"{ZERO}.zenflow in ds.json, {APART}"),
        (f"{ZERO}.offload_param", {"device": "cpu"}, f"{ZERO}.offload_param in ds.json, {HOST}"),
        (f"{ZERO}.cpu_offload_param", True, f"{ZERO}.cpu_offload_param=true in ds.json, {HOST}"),
        ("data_types.param_dtype", "bf16", f'data_types.param_dtype="bf16" in ds.json, {PRECISION}'),
        *[(key, {"enabled": True}, f"{key} in ds.json, {PRECISION}") for key in ("amp", "fp16", "torch_autocast")],
        *[
            (f"bf16.{name}", True, f"bf16.{name}=true in ds.json, {PRECISION}")
            for name in ("bf16_master_weights_and_grads", "bf16_optimizer_states")
        ],
        *[
            (key, {"some": 1}, f"{key} in ds.json, {GONE}")
            for key in (
                "compression_training",
                "eigenvalue",
                "elasticity",
                "progressive_layer_drop",
                "quantize_training",
                "sparse_attention",
                f"{ZERO}.zeropp_loco_param",
            )
        ],
        *[
            (key, True, f"{key}=true in ds.json, {GONE}")
            for key in (
                "graph_harvesting",
                "sparse_gradients",
                f"{ZERO}.legacy_stage1",
                f"{ZERO}.mics_hierarchical_params_gather",
            )
        ],
        ("curriculum_learning", {"enabled": True}, f"curriculum_learning in ds.json, {DATA}"),
        ("data_efficiency", {"enabled": True}, f"data_efficiency in ds.json, {DATA}"),
        ("dataloader_drop_last", True, f"dataloader_drop_last=true in ds.json, {DATA}"),
        *[
            (key, {"some": 1}, f"{key} in ds.json, {CHECKPOINTS}")
            for key in ("checkpoint", "datastates_ckpt", "nebula")
        ],
        *[
            (f"{ZERO}.{name}", True, f"{ZERO}.{name}=true in ds.json, {CHECKPOINTS}")
            for name in ("elastic_checkpoint", "pipeline_loading_checkpoint")
        ],
        *[
            (key, {"some": 1}, f"{key} in ds.json, {SPLIT}")
            for key in ("expert_parallel", "pipeline", "tensor_parallel")
        ],
        *[
            (key, 2, f"{key}=2 in ds.json, {SPLIT}")
            for key in (
                "data_parallel_size",
                "seq_parallel_communication_data_type",
                "sequence_parallel_size",
                "use_data_before_expert_parallelism",
            )
        ],
        ("weight_quantization", {"some": 1}, f"weight_quantization in ds.json, {ROUNDED}"),
        *[
            (f"{ZERO}.{name}", True, f"{ZERO}.{name}=true in ds.json, {ROUNDED}")
            for name in ("zero_quantized_gradients", "zero_quantized_nontrainable_weights", "zero_quantized_weights")
        ],
        # no such thing
        (
            "gradient_cliping",
            1,
            "gradient_cliping in ds.json is no setting of DeepSpeed known here; "
            "did you mean gradient_clipping or gradient_accumulation_steps?",
        ),
        (
            f"{ZERO}.overlap_com",
            True,
            f"{ZERO}.overlap_com in ds.json is no setting of DeepSpeed known here; did you mean {ZERO}.overlap_comm?",
        ),
        ("bf16.xyz", None, "bf16.xyz in ds.json is no setting of DeepSpeed known here"),
        ("", {}, " in ds.json is no setting of DeepSpeed known here"),
        (ZERO, True, "zero_optimization=true in ds.json must be an object, {…}"),
        ("bf16", [1], "bf16=[1] in ds.json must be an object, {…}"),
    ],
)
def test_a_refusal(key: str, value: Any, message: str) -> None:
    assert refusal(nested(key, value)) == message


def test_every_rule_has_its_message_here() -> None:
    from fptt_dist.parallel.deepspeed_settings import _RULES

    [mark] = [mark for mark in test_a_refusal.pytestmark if mark.name == "parametrize"]  # pyright: ignore
    assert set(_RULES) <= {key for key, _, _ in mark.args[1]}


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (
            {ZERO: {"sub_group_size": 1e9}},
            {"stage": 3},
            f"{ZERO}.sub_group_size=1000000000.0 in ds.json, {APART}",
        ),
        (
            {ZERO: {"stage3_param_persistence_threshold": 10}},
            {"stage": 3},
            f"{ZERO}.stage3_param_persistence_threshold=10 in ds.json, but a weight kept whole would miss FPTT's step: "
            + FIXED,
        ),
        (
            {ZERO: {"param_persistence_threshold": 10}},
            {"stage": 3},
            f"{ZERO}.param_persistence_threshold=10 in ds.json, but a weight kept whole would miss FPTT's step: "
            + FIXED,
        ),
        (
            {"data_types": {"grad_accum_dtype": "fp32"}},
            {"stage": 1, "bf16": True},
            'data_types.grad_accum_dtype="fp32" in ds.json, but with it DeepSpeed\'s stage 1 is another optimizer: '
            f"type parallel.stage=2, and {FIXED}",
        ),
        (
            {"bf16": {"enabled": False}},
            {"bf16": True},
            f"bf16.enabled=false in ds.json, but train.precision=bf16: type train.precision=fp32, or {FIXED}",
        ),
        (
            {ZERO: {"offload_optimizer": {"device": "none"}}},
            {"offload": True},
            f'{ZERO}.offload_optimizer.device="none" in ds.json, but parallel.offload=true keeps it in the host\'s '
            f"memory: type parallel.offload=false, or {FIXED}",
        ),
        (
            {ZERO: {"offload_optimizer": {"device": "nvme"}}},
            {"offload": True},
            f'{ZERO}.offload_optimizer.device="nvme" in ds.json, but parallel.offload=true keeps it in the host\'s '
            f"memory: {FIXED}",
        ),
    ],
)
def test_a_refusal_with_other_choices(given: dict[str, Any], options: dict[str, Any], message: str) -> None:
    assert refusal(given, **options) == message


def test_all_problems_are_in_one_message() -> None:
    found = refusal({"sparse_gradients": True, "overlap": 1, ZERO: {"stage": 1, "zero_quantized_weights": True}})
    assert found.splitlines() == [
        f"sparse_gradients=true in ds.json, {GONE}",
        "overlap in ds.json is no setting of DeepSpeed known here",
        f"{ZERO}.stage=1 in ds.json, but parallel.stage=2: type parallel.stage=1, or {FIXED}",
        f"{ZERO}.zero_quantized_weights=true in ds.json, {ROUNDED}",
    ]


def test_a_file_is_merged_in_depth() -> None:
    given = {
        "communication_data_type": "fp32",
        "prescale_gradients": True,
        "wall_clock_breakdown": True,
        "steps_per_print": 10,
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
        "bf16": {"enabled": True, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        ZERO: {"reduce_bucket_size": 1000, "overlap_comm": True, "offload_optimizer": {"pin_memory": False}},
    }
    ours = settings(bf16=True, offload=True)
    assert settings(given, bf16=True, offload=True) == ours | given | {
        "bf16": given["bf16"],
        ZERO: ours[ZERO] | given[ZERO] | {"offload_optimizer": {"device": "cpu", "pin_memory": False}},
    }


def test_stages_1_and_2_do_not_mind_what_stage_3_reads() -> None:
    only_3 = {"sub_group_size": 1e9, "stage3_param_persistence_threshold": 10}
    assert settings({ZERO: only_3})[ZERO] == settings()[ZERO] | only_3
    accumulation = {"data_types": {"grad_accum_dtype": "fp32"}}
    assert settings(accumulation, bf16=True, stage=2)["data_types"] == accumulation["data_types"]
    assert settings(accumulation, bf16=True, stage=1, offload=True)["data_types"] == accumulation["data_types"]


AUTO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": None,
    "communication_data_type": "auto",
    "scheduler": None,
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    ZERO: {
        "stage": "auto",
        "reduce_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "sub_group_size": "auto",
        "zenflow": None,
    },
}


@pytest.mark.parametrize(("stage", "bf16", "offload"), CHOICES)
def test_auto_and_null_and_what_is_off_say_nothing(stage: int, bf16: bool, offload: bool) -> None:
    chosen = {"stage": stage, "bf16": bf16, "offload": offload}
    ours = settings(**chosen)
    assert settings({}, **chosen) == ours
    assert settings(AUTO, **chosen) == ours
    assert settings(ours, **chosen) == ours
    off = {
        "amp": {"enabled": False},
        "tensor_parallel": {},
        "sparse_gradients": False,
        "train_micro_batch_size_per_gpu": 32,
        "managed_gradient_accumulation": True,
        ZERO: {
            "offload_param": {"device": "none"},
            "mics_shard_size": -1,
            "zero_hpz_partition_size": 1,
            "compute_grad_norm": True,
            "zero_quantized_weights": False,
        },
    }
    assert settings(off, **chosen) == ours


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "bf16": {}\n  "fp16": {}\n}', "ds.json:3: not JSON: Expecting ',' delimiter"),
        ("", "ds.json:1: not JSON: Expecting value"),
        ('{"steps_per_print": NaN}', "ds.json: not JSON: NaN"),
        ("[1]", "ds.json: not an object of settings, {…}"),
        ('{"bf16": {"enabled": true, "enabled": false}}', "ds.json: the key enabled is given twice"),
    ],
)
def test_what_is_no_file_of_settings(text: str, message: str) -> None:
    assert refusal(text) == message


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"^ds\.json: cannot be read: No such file or directory$"):
        engine_settings(stage=2, bf16=False, offload=False, sequences=1, given=FILE)
    FILE.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match=r"^ds\.json: not UTF-8 text \(byte 7\)$"):
        engine_settings(stage=2, bf16=False, offload=False, sequences=1, given=FILE)


@pytest.mark.parametrize(("stage", "bf16", "offload"), CHOICES)
def test_deepspeed_reads_what_is_meant(stage: int, bf16: bool, offload: bool) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    given = {"communication_data_type": "fp32", ZERO: {"reduce_bucket_size": 1000, "stage3_max_live_parameters": 7}}
    found: Any = DeepSpeedConfig(settings(given, stage=stage, bf16=bf16, offload=offload))
    zero = found.zero_config
    assert (found.train_batch_size, found.train_micro_batch_size_per_gpu, found.gradient_accumulation_steps) == (
        32,
        32,
        1,
    )
    assert (found.zero_enabled, found.zero_optimization_stage, zero.round_robin_gradients) == (True, stage, False)
    assert (found.bfloat16_config.enabled, found.float16_config.enabled) == (bf16, False)
    assert (found.gradient_clipping, found.optimizer_name, found.scheduler_name) == (0.0, None, None)
    assert (found.zero_allow_untested_optimizer, found.zero_force_ds_cpu_optimizer) == (True, False)
    assert (found.steps_per_print, found.wall_clock_breakdown) == (None, False)
    assert (zero.reduce_bucket_size, zero.max_live_parameters) == (1000, 7)
    if stage == 3:
        assert (zero.sub_group_size, zero.param_persistence_threshold) == (ONE_GROUP, 0)
    if offload:
        assert (zero.offload_optimizer.device, zero.offload_optimizer.pin_memory) == ("cpu", True)
    else:
        assert zero.offload_optimizer is None


def test_every_setting_of_deepspeed_is_known() -> None:
    from deepspeed.runtime import config
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    models = {"bf16": DeepSpeedBF16Config, ZERO: DeepSpeedZeroConfig}
    models[f"{ZERO}.offload_optimizer"] = DeepSpeedZeroOffloadOptimizerConfig
    names = {"": set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)}
    for section, model in models.items():
        fields = model.model_fields
        names[section] = {*fields, *(entry.alias for entry in fields.values() if entry.alias)}
    names[ZERO] |= set(config._REMOVED_ZERO_CONFIG_KEYS)
    for section, inside in names.items():
        for name in inside:  # null says nothing, unless the name is unknown
            assert settings(nested(f"{section}.{name}" if section else name, None), stage=3)
