"""The page of the Python API: its contents and their order. The text comes from the docstrings."""

from fptt_dist.layers import PLACES

INTRODUCTION = """# Python API

The public names of the package. The first section needs nothing but torch; the rest is the framework around it. The
equations are on [the method's page](method.md).
Shapes: S steps, B sequences, C classes, K windows of a sequence of T steps.
"""

TORCHS = ("lstm", "gru", "rnn")  # documented there
SECTIONS = {
    "The optimizer": ("fptt_dist.FPTT", "fptt_dist.algorithm.slow_weights.SlowWeights"),
    "Windows and losses": (
        "fptt_dist.window_slices",
        "fptt_dist.algorithm.windows.sequence_windows",
        "fptt_dist.algorithm.windows.Window",
        "fptt_dist.algorithm.windows.detach",
        "fptt_dist.algorithm.losses.WindowLoss",
        "fptt_dist.algorithm.losses.SequenceLoss",
        "fptt_dist.algorithm.losses.RegressionLoss",
        "fptt_dist.algorithm.losses.TerminalLoss",
        "fptt_dist.algorithm.target_estimates.UniformEstimate",
        "fptt_dist.algorithm.target_estimates.ClassMeanEstimate",
        "fptt_dist.algorithm.target_estimates.ExampleEstimate",
    ),
    "In other frameworks": (
        "fptt_dist.integrations.lightning_callback.LightningCenter",
        "fptt_dist.integrations.trainer_callback.TrainerCenter",
    ),
    "Schedules of α": (
        "fptt_dist.algorithm.schedules.constant",
        "fptt_dist.algorithm.schedules.linear",
        "fptt_dist.algorithm.schedules.cosine",
        "fptt_dist.algorithm.schedules.inverse_lr",
    ),
    "Training from Python": (
        "fptt_dist.training.fit.fit",
        "fptt_dist.training.result.Result",
        "fptt_dist.Callback",
        "fptt_dist.training.callbacks.RunStart",
        "fptt_dist.training.callbacks.BatchEnd",
        "fptt_dist.training.callbacks.Validation",
        "fptt_dist.training.callbacks.SavedCheckpoint",
        "fptt_dist.training.callbacks.CallbackError",
        "fptt_dist.config.loading.loader.load",
        "fptt_dist.config.loading.overrides.parse_overrides",
        "fptt_dist.config.loading.overrides.apply_overrides",
        "fptt_dist.config.errors.ConfigError",
    ),
    "Models": (
        "fptt_dist.models.network.Network",
        "fptt_dist.models.window_state.WindowState",
        "fptt_dist.models.serialization.load_network",
        "fptt_dist.models.serialization.save_network",
    ),
    "Cells": (
        "fptt_dist.models.recurrent.recurrent_layer",
        "fptt_dist.models.recurrent.chrono_init",
        "fptt_dist.models.unroll.Stepped",
        "fptt_dist.models.unroll.unroll",
        "fptt_dist.models.unroll.compile_steps",
        "fptt_dist.models.scan.scan",
        "fptt_dist.models.recurrent_stack.RecurrentStack",
        *(f"fptt_dist.models.cells.{place}" for layer, place in PLACES.items() if layer not in TORCHS),
        "fptt_dist.models.cells.spikes.SpikingStack",
        "fptt_dist.models.cells.spikes.spike",
    ),
}

EXAMPLE = """
```python
from fptt_dist import fit

config = {"extends": "add_task", "fptt.alpha": 0.5, "train.max_batches": 20, "run.dir": "runs/from_python"}
print(fit(config))  # what result.json in runs/from_python says
```

The keys are those of [the configuration](configuration.md).
"""


def api_page() -> str:
    """Return the Markdown that mkdocstrings fills in."""
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        if title == "Training from Python":
            parts.append(EXAMPLE)
        parts += [f"::: {name}\n" for name in names]
    return "\n".join(parts)
