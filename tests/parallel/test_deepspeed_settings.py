"""The settings that DeepSpeed is started with, and the message for a DeepSpeed file that sets what is ours."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from fptt_dist.config import ConfigError
from fptt_dist.parallel.placement.deepspeed_settings import ALLOWED, ONE_GROUP, check_values, engine_settings

FILE = Path("ds.json")
ZERO = "zero_optimization"
CHOICES = [
    dict(zip(("stage", "bf16", "offload"), each, strict=True))
    for each in itertools.product((1, 2, 3), (False, True), (False, True))
]


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


def refusal(given: Any, **options: Any) -> list[str]:
    """The lines of the message; [] where there is none."""
    try:
        settings(given, **options)
    except ConfigError as error:
        return str(error).splitlines()
    return []


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


REFUSED: list[tuple[str, Any, str]] = [  # the key of ours that decides it
    (f"{ZERO}.stage", 3, "parallel.zero_stage"),
    (f"{ZERO}.stage", 0, "parallel.zero_stage"),
    ("bf16.enabled", True, "train.precision"),
    ("fp16", {"enabled": True}, "train.precision"),
    ("fp16", True, "train.precision"),
    ("amp", {"enabled": True}, "train.precision"),
    ("torch_autocast", {"enabled": True}, "train.precision"),
    (f"{ZERO}.offload_optimizer.device", "cpu", "parallel.offload"),
    (f"{ZERO}.offload_optimizer.device", "nvme", "parallel.offload"),
    (f"{ZERO}.offload_param", {"device": "cpu"}, "parallel.offload"),
    (f"{ZERO}.cpu_offload", True, "parallel.offload"),
    ("train_micro_batch_size_per_gpu", 16, "train.micro_batch_size"),
    ("train_batch_size", 64, "train.batch_size"),
    ("gradient_accumulation_steps", 4, "train.micro_batch_size"),
    ("gradient_clipping", 1.5, "train.max_norm"),
    ("optimizer", {"type": "OneBitAdam"}, "optimizer.name"),
    ("scheduler", {"type": "WarmupLR"}, "schedule.name"),
    # what would train something else; the first two, at stage 3 with some values, a fraction of the gradient
    ("gradient_predivide_factor", 2.0, ""),
    ("prescale_gradients", True, ""),
    ("gradient_allreduce_op", "sum", ""),
    ("zero_allow_untested_optimizer", False, ""),
    ("zero_force_ds_cpu_optimizer", True, ""),
    ("bf16.check_grad_overflow", False, ""),
    ("bf16.bf16_optimizer_states", True, ""),
    ("data_types.param_dtype", "bf16", ""),
    ("compile", {"deepcompile": True}, ""),
    ("compression_training", {"some": 1}, ""),
    ("managed_gradient_accumulation", False, ""),
    ("sparse_gradients", True, ""),
    ("tensor_parallel", {"autotp_size": 2}, ""),
    (f"{ZERO}.compute_grad_norm", False, ""),
    (f"{ZERO}.round_robin_gradients", True, ""),
    (f"{ZERO}.sub_group_size", 1e9, ""),
    (f"{ZERO}.stage3_param_persistence_threshold", 10, ""),
    (f"{ZERO}.param_persistence_threshold", 10, ""),
    (f"{ZERO}.zero_quantized_gradients", True, ""),
    (f"{ZERO}.zenflow", {"topk_ratio": 0.1}, ""),
    (f"{ZERO}.offload_optimizer.ratio", 0.5, ""),
    # no such thing, and no section
    ("xyz", 1, ""),
    (f"{ZERO}.xyz", False, ""),
    (ZERO, True, ""),
    ("bf16", [1], ""),
]


def test_what_is_ours_is_refused() -> None:
    found, expected = {}, {}
    for stage, (key, value, ours) in itertools.product((2, 3), REFUSED):
        if key == f"{ZERO}.stage" and value == stage:
            continue
        shown = "" if isinstance(value, dict | list) else f"={json.dumps(value)}"
        decides = f", where {ours} decides" if ours else ""
        row = (stage, key, str(value))
        found[row] = [line.partition("; did you mean ")[0] for line in refusal(nested(key, value), stage=stage)]
        expected[row] = [
            f"{key}{shown} in ds.json is not among what a DeepSpeed file may set here{decides}: take it out",
            f"a DeepSpeed file may set: {', '.join(ALLOWED)}",
        ]
    assert found == expected


def test_a_refusal_with_other_choices() -> None:
    rows = [
        ("bf16.enabled", False, {"bf16": True}, "train.precision"),
        (f"{ZERO}.offload_optimizer.device", "none", {"offload": True}, "parallel.offload"),
        ("data_types.grad_accum_dtype", "fp32", {"stage": 1, "bf16": True}, "parallel.zero_stage"),
    ]
    for key, value, options, ours in rows:
        line, allowed = refusal(nested(key, value), **options)
        assert line == (
            f"{key}={json.dumps(value)} in ds.json is not among what a DeepSpeed file may set here, "
            f"where {ours} decides: take it out"
        )
        assert ("data_types" in allowed) == (key != "data_types.grad_accum_dtype")


def test_all_problems_are_in_one_message_with_what_may_have_been_meant() -> None:
    found = refusal({"gradient_cliping": 1, "fp16": {"enabled": True}, ZERO: {"stage": 1, "overlap_com": True}})
    begins = ["gradient_cliping=1 in", "fp16 in", f"{ZERO}.stage=1 in", f"{ZERO}.overlap_com=true in", "a DeepSpeed"]
    assert [line.startswith(words) for line, words in zip(found, begins, strict=True)] == [True] * 5
    assert "did you mean" not in found[0]  # nothing that may be set is meant
    assert found[3].endswith(f"; did you mean {ZERO}.overlap_comm?")


def test_names_with_dots_are_refused() -> None:
    """They equal the keys in our messages, and DeepSpeed would take no notice of them."""
    for given in ({f"{ZERO}.overlap_comm": True}, {ZERO: {"offload_optimizer.pin_memory": False}}):
        assert "write one section inside the other" in refusal(given)[0], given


def test_a_file_is_merged_in_depth() -> None:
    given = {
        "communication_data_type": "fp32",
        "wall_clock_breakdown": True,
        "steps_per_print": 10,
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
        "bf16": {"enabled": True, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "bf16"},
        ZERO: {"reduce_bucket_size": 1000, "overlap_comm": True, "offload_optimizer": {"pin_memory": False}},
    }
    ours = settings(bf16=True, offload=True)
    assert settings(given, bf16=True, offload=True) == ours | given | {
        ZERO: ours[ZERO] | given[ZERO] | {"offload_optimizer": {"device": "cpu", "pin_memory": False}},
    }


def test_auto_and_null_and_what_is_off_or_ours_say_nothing() -> None:
    silent = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": None,
        "communication_data_type": "auto",
        "scheduler": None,
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "amp": {"enabled": False},
        "tensor_parallel": {},
        "gradient_accumulation_steps": 1,
        ZERO: {
            "stage": "auto",
            "reduce_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "sub_group_size": "auto",
            "zenflow": None,
            "offload_param": {"device": "none"},
        },
    }
    for chosen in CHOICES:
        ours = settings(**chosen)
        assert [settings(given, **chosen) for given in ({}, silent, ours)] == [ours] * 3, chosen


def test_what_is_no_file_of_settings() -> None:
    expected = {
        '{\n  "bf16": {}\n  "fp16": {}\n}': ["ds.json:3: not JSON: Expecting ',' delimiter"],
        "": ["ds.json:1: not JSON: Expecting value"],
        '{"steps_per_print": NaN}': ["ds.json: not JSON: NaN"],
        "[1]": ["ds.json: not an object of settings, {…}"],
        '{"bf16": {"enabled": true, "enabled": false}}': ["ds.json: the key enabled is given twice"],
    }
    assert {text: refusal(text) for text in expected} == expected


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"^ds\.json: cannot be read: No such file or directory$"):
        engine_settings(stage=2, bf16=False, offload=False, sequences=1, given=FILE)
    FILE.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match=r"^ds\.json: not UTF-8 text \(byte 7\)$"):
        engine_settings(stage=2, bf16=False, offload=False, sequences=1, given=FILE)


def test_deepspeed_reads_what_is_meant() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    given = {"communication_data_type": "fp32", ZERO: {"reduce_bucket_size": 1000, "stage3_max_live_parameters": 7}}
    for chosen in CHOICES:
        found: Any = DeepSpeedConfig(settings(given, **chosen))
        zero = found.zero_config
        sizes = (found.train_batch_size, found.train_micro_batch_size_per_gpu, found.gradient_accumulation_steps)
        assert sizes == (32, 32, 1)
        stage = (found.zero_enabled, found.zero_optimization_stage, zero.round_robin_gradients)
        assert stage == (True, chosen["stage"], False)
        assert (found.bfloat16_config.enabled, found.float16_config.enabled) == (chosen["bf16"], False)
        assert (found.gradient_clipping, found.optimizer_name, found.scheduler_name) == (0.0, None, None)
        assert (found.zero_allow_untested_optimizer, found.zero_force_ds_cpu_optimizer) == (True, False)
        assert (found.steps_per_print, found.wall_clock_breakdown) == (None, False)
        assert (zero.reduce_bucket_size, zero.max_live_parameters) == (1000, 7)
        if chosen["stage"] == 3:
            assert (zero.sub_group_size, zero.param_persistence_threshold) == (ONE_GROUP, 0)
        if chosen["offload"]:
            assert (zero.offload_optimizer.device, zero.offload_optimizer.pin_memory) == ("cpu", True)
        else:
            assert zero.offload_optimizer is None


def test_every_setting_allowed_in_a_section_is_deepspeeds() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    models = {
        "bf16": DeepSpeedBF16Config,
        ZERO: DeepSpeedZeroConfig,
        f"{ZERO}.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    }
    for section, model in models.items():
        names = {field.alias or name for name, field in model.model_fields.items()}
        assert {key.removeprefix(f"{section}.") for key in ALLOWED if key.rpartition(".")[0] == section} <= names


WRONG_VALUES = {
    '{"zero_optimization": {"reduce_bucket_size": "big"}}': (
        'zero_optimization.reduce_bucket_size="big": Input should be a valid integer'
    ),
    '{"zero_optimization": {"overlap_comm": [1]}}': "zero_optimization.overlap_comm=[1]: Input should be a valid bool",
    '{"communication_data_type": "fp99"}': "Invalid communication_data_type.",
    '{"flops_profiler": {"enabled": "maybe"}}': "",
}


@pytest.mark.filterwarnings("ignore")  # DeepSpeed's own
@pytest.mark.parametrize("text", WRONG_VALUES)
def test_a_value_that_deepspeed_refuses_is_one_message(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    settings = engine_settings(stage=1, bf16=False, offload=False, sequences=1, given=file)
    before = json.dumps(settings)
    with pytest.raises(ConfigError) as caught:
        check_values(settings, file)
    start = f"parallel.deepspeed_config={file}: DeepSpeed refuses its values: {WRONG_VALUES[text]}"
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert json.dumps(settings) == before
    check_values(engine_settings(stage=1, bf16=False, offload=False, sequences=1, given=None), file)
