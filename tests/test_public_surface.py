"""What users of the package may rely on, frozen: a change here is a change for them."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fptt_dist
import fptt_dist.integrations
from fptt_dist.config import Config
from tests.test_cli import COMMANDS

LOSSES = ["MultiLabelLoss", "RegressionLoss", "SequenceLoss", "StepRegressionLoss", "TerminalLoss", "UniformEstimate"]
SURFACE = sorted(
    ["FPTT", "Batch", "Callback", "Task", "__version__", "fit", "load", "rank_slice", "window_slices", *LOSSES]
)


def test_the_names() -> None:
    assert sorted(fptt_dist.__all__) == SURFACE
    for name in SURFACE:
        assert getattr(fptt_dist, name) is not None
    with pytest.raises(AttributeError, match="module 'fptt_dist' has no attribute 'train'"):
        _ = fptt_dist.train  # type: ignore[attr-defined]


def test_the_arguments() -> None:
    known = ["config", "task", "network", "callbacks", "trust_code"]
    assert list(inspect.signature(fptt_dist.fit).parameters) == known
    assert list(inspect.signature(fptt_dist.window_slices).parameters) == ["length", "windows"]
    assert list(inspect.signature(fptt_dist.FPTT).parameters) == [
        *(
            "base",
            "alpha",
            "beta",
            "dual_weight",
            "prox_weight",
            "update_rule",
            "metric",
            "max_norm",
            "clip_scope",
            "fused",
        ),
    ]


def test_the_integrations_wait_for_their_frameworks() -> None:
    assert fptt_dist.integrations.__all__ == ["LightningCenter", "TrainerCenter"]
    code = "import sys, fptt_dist.integrations; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_sections_of_a_configuration() -> None:
    expected = {"task", "model", "algorithm", "fptt", "optimizer", "schedule", "train", "evaluate", "checkpoint"}
    expected |= {"logging", "parallel", "run", "seed", "device", "resume"}
    assert expected <= set(Config.model_fields)


IMPORTS = """
import contextlib, io, json, sys
import fptt_dist

HEAVY = {"torch", "numpy", "matplotlib", "tensorboard", "ray", "rich", "typer", "pydantic", "ruamel", "safetensors"}
def there():
    return sorted((HEAVY | {"fptt_dist.training"}) & sys.modules.keys())

found = {"import": there()}
if sys.argv[1:]:
    from fptt_dist.cli import main

    for line in sys.argv[1:]:
        sys.argv = ["fptt-dist", *line.split()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main()
            except SystemExit as left:
                found[line] = [left.code or 0, *there()]
else:
    fptt_dist.FPTT, fptt_dist.window_slices
    found["algorithm"] = there()
print(json.dumps(found))
"""


def imports(*lines: str) -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-c", IMPORTS, *lines], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_optimizer_alone_needs_torch_alone() -> None:
    assert imports() == {"import": [], "algorithm": ["numpy", "torch"]}


def test_what_trains_nothing_starts_without_torch(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text("train: {max_batches: 3}\n")
    helps = [f"{verb} --help" for verb in ("", "config", "data", *COMMANDS)]
    expected = dict.fromkeys(["--version", *helps, "config schema", "config keys fptt", "config show add_task"], 0)
    expected |= dict.fromkeys(["trian", "config shwo", "train add_task --dryrun", "config show add_task a.b=1"], 2)
    expected |= dict.fromkeys(["train nothing.yaml", "train add_task train.bachsize=3", "config keys fppt"], 2)
    expected |= {f"jobs {tmp_path}/runs": 0, "jobs nothing": 2, "data fetch mnsit": 2}
    expected |= {f"data check mnist --root {tmp_path}": 1}
    found = imports(*expected)
    assert found.pop("import") == []
    assert found["--version"] == [0, "typer"]
    assert {line: code for line, (code, *_) in found.items()} == expected
    heavy = {"torch", "matplotlib", "tensorboard", "ray", "safetensors"}
    assert {line: there for line, (_, *names) in found.items() if (there := heavy & set(names))} == {}


def test_the_version_needs_little() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fptt_dist", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"fptt-dist {fptt_dist.__version__}\n"
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in names
    assert not {"torch", "numpy", "matplotlib", "tensorboard", "ray", "pydantic", "rich", "ruamel"} & names
