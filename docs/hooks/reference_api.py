"""The page of the Python API: what is on it, in which order. The words are the docstrings'."""

INTRODUCTION = """# Python API

What a program of yours may import. The first section needs nothing but torch; the rest is the framework around it. The
equations are on [the method's page](method.md).
Shapes: S steps, B sequences, C classes, K windows of a sequence of T steps.
"""

SECTIONS = {
    "The optimizer": ("fptt_dist.FPTT",),
    "Windows and losses": (
        "fptt_dist.window_slices",
        "fptt_dist.algorithm.windows.sequence_windows",
        "fptt_dist.algorithm.windows.Window",
        "fptt_dist.algorithm.windows.detach",
        "fptt_dist.algorithm.losses.InstantaneousLoss",
        "fptt_dist.algorithm.losses.SequenceLoss",
        "fptt_dist.algorithm.losses.RegressionLoss",
        "fptt_dist.algorithm.losses.TerminalLoss",
        "fptt_dist.algorithm.estimates.UniformEstimate",
        "fptt_dist.algorithm.estimates.ClassMeanEstimate",
        "fptt_dist.algorithm.estimates.ExampleEstimate",
    ),
    "Schedules of α": (
        "fptt_dist.algorithm.schedules.constant",
        "fptt_dist.algorithm.schedules.linear",
        "fptt_dist.algorithm.schedules.cosine",
        "fptt_dist.algorithm.schedules.inverse_lr",
    ),
    "Training from Python": (
        "fptt_dist.training.run.train",
        "fptt_dist.training.run_folder.Result",
        "fptt_dist.config.loader.load",
        "fptt_dist.config.overrides.parse_overrides",
        "fptt_dist.config.overrides.apply_overrides",
        "fptt_dist.config.errors.ConfigError",
    ),
    "Models": (
        "fptt_dist.models.network.Network",
        "fptt_dist.models.carried.Carried",
        "fptt_dist.models.saved.load_network",
        "fptt_dist.models.saved.save_network",
    ),
    "Cells": (
        "fptt_dist.models.recurrent.recurrent_layer",
        "fptt_dist.models.recurrent.chrono_initialisation",
        "fptt_dist.models.unroll.Stepped",
        "fptt_dist.models.unroll.unroll",
        "fptt_dist.models.unroll.compile_steps",
        "fptt_dist.models.scan.scan",
        "fptt_dist.models.stack.Stack",
        "fptt_dist.models.cells.antisymmetric.AntisymmetricRNN",
        "fptt_dist.models.cells.fast_grnn.FastGRNN",
        "fptt_dist.models.cells.incremental.IncrementalRNN",
        "fptt_dist.models.cells.indrnn.IndRNN",
        "fptt_dist.models.cells.orthogonal.OrthogonalRNN",
        "fptt_dist.models.cells.trellis.TrellisNet",
        "fptt_dist.models.cells.rlstm.ReconstructingLSTM",
        "fptt_dist.models.cells.ur_lstm.URLSTM",
        "fptt_dist.models.cells.layer_norm_lstm.LayerNormLSTM",
        "fptt_dist.models.cells.lem.LEM",
        "fptt_dist.models.cells.cornn.CoRNN",
        "fptt_dist.models.cells.min_rnn.MinGRU",
        "fptt_dist.models.cells.min_rnn.MinLSTM",
        "fptt_dist.models.cells.lru.LRU",
        "fptt_dist.models.cells.spiking.LIF",
        "fptt_dist.models.cells.spiking.ALIF",
        "fptt_dist.models.cells.ltc.LTC",
        "fptt_dist.models.cells.spikes.SpikingStack",
        "fptt_dist.models.cells.spikes.spike",
    ),
}

EXAMPLE = """
```python
from fptt_dist import train
from fptt_dist.config import apply_overrides, load

config = load("configs/add_task.yaml", {"fptt.alpha": 0.5, "run.dir": "runs/from_python"})
config = apply_overrides(config, {"train.batches": 20})
print(train(config))  # what result.json in runs/from_python says
```

The keys are those of [the configuration](configuration.md).
"""


def api_page() -> str:
    """Markdown that mkdocstrings fills in."""
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        if title == "Training from Python":
            parts.append(EXAMPLE)
        parts += [f"::: {name}\n" for name in names]
    return "\n".join(parts)
