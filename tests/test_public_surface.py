"""What users of the package may rely on, frozen: a change here is a change for them."""

import inspect
import json
import subprocess
import sys

import pytest

import fptt_dist
from fptt_dist.config import Config

SURFACE = ["FPTT", "__version__", "train", "window_slices"]


def test_the_names() -> None:
    assert fptt_dist.__all__ == SURFACE
    for name in SURFACE:
        assert getattr(fptt_dist, name) is not None
    with pytest.raises(AttributeError, match="module 'fptt_dist' has no attribute 'fit'"):
        _ = fptt_dist.fit  # type: ignore[attr-defined]


def test_the_arguments() -> None:
    assert list(inspect.signature(fptt_dist.train).parameters) == ["config", "watch"]
    assert list(inspect.signature(fptt_dist.window_slices).parameters) == ["length", "windows"]
    assert list(inspect.signature(fptt_dist.FPTT).parameters) == [
        *("base", "alpha", "beta", "dual_weight", "prox_weight", "update", "metric", "max_norm", "clip", "fused"),
    ]


def test_the_sections_of_a_configuration() -> None:
    expected = {"task", "model", "algorithm", "fptt", "optimizer", "schedule", "train", "evaluate", "checkpoint"}
    expected |= {"telemetry", "parallel", "run", "seed", "device", "resume"}
    assert expected <= set(Config.model_fields)


def test_what_an_import_brings_along() -> None:
    code = """
import json, sys
import fptt_dist
fptt_dist.FPTT, fptt_dist.window_slices
first = sorted(sys.modules)
import fptt_dist.cli
print(json.dumps([first, sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    algorithm, command = (set(names) for names in json.loads(done.stdout))
    heavy = {"tensorboard", "matplotlib", "rich", "typer", "pydantic", "ruamel", "safetensors", "fptt_dist.training"}
    assert not heavy & algorithm
    assert "typer" in command
    assert not {"matplotlib", "tensorboard", "torch.utils.tensorboard"} & command
