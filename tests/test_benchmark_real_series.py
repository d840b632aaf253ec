"""The parts of the benchmark on real series: reading, choosing, baselines, table. Nothing is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from benchmarks import real_series
from benchmarks.log_loss import LogLoss
from benchmarks.real_series_baselines import draw_kernels, dtw_distances, forecasters, kernel_features

VOWELS, MOTIONS, SUNSPOTS = real_series.SETS


def found(validation: dict[tuple[str, float, float | None], float], tests: dict[str, list[float]]) -> dict[str, Any]:
    """Results of JapaneseVowels: log loss of each setting of the search, accuracies of the chosen ones."""
    results: dict[str, Any] = {}
    for run in real_series.grid(VOWELS):
        loss = validation.get((run.method, run.rate, run.alpha), 1.0)
        # The best accuracy on the test set is elsewhere: it must not count.
        results[run.name] = {"validation": {"LogLoss": loss, "accuracy": 0.5}, "test": {"accuracy": 1 - 1e-3 * loss}}
    for method, values in tests.items():
        best = real_series.chosen(VOWELS, method, results)
        assert best is not None
        for run, value in zip(real_series.repeated(best), values, strict=False):
            results[run.name] = {
                "validation": {"LogLoss": 0.1, "accuracy": 0.75},
                "test": {"accuracy": value},
                "updates": 1350,
            }
    return results


def test_a_ts_file_is_read_with_unequal_lengths(tmp_path: Path) -> None:
    file = tmp_path / "a.ts"
    file.write_text("#text\n@data\n1,2,3:4,5,6:left\n\n7:8:right\n-1.5,0:2,2.5e1:left\n")
    inputs, lengths, targets = real_series.read_ts(file)
    np.testing.assert_array_equal(inputs, [[1, 4], [2, 5], [3, 6], [7, 8], [-1.5, 2], [0, 25]])
    np.testing.assert_array_equal(lengths, [3, 1, 2])
    np.testing.assert_array_equal(targets, ["left", "right", "left"])


def test_settings_are_chosen_by_validation_alone_and_only_when_all_are_there() -> None:
    results = found({("fptt", 3e-3, 0.2): 0.3, ("fptt", 1e-2, 0.5): 0.4, ("bptt", 1e-2, None): 0.2}, {})
    best = real_series.chosen(VOWELS, "fptt", results)
    assert best is not None
    assert (best.rate, best.alpha) == (3e-3, 0.2)
    best = real_series.chosen(VOWELS, "bptt", results)
    assert best is not None
    assert (best.rate, best.alpha) == (1e-2, None)
    del results["japanese_vowels-bptt-lr0.001-seed101"]
    assert real_series.chosen(VOWELS, "bptt", results) is None


def test_the_table_has_intervals_of_values_and_of_paired_differences() -> None:
    tbptt = [0.90, 0.92, 0.94, 0.96, 0.90, 0.92, 0.94, 0.96]
    results = found(
        {("tbptt", 3e-3, None): 0.3, ("fptt", 1e-3, 0.05): 0.3},
        {"tbptt": tbptt, "fptt": [each + 0.001 for each in tbptt], "bptt": [0.8] * 7},  # one seed is missing
    )
    results["japanese_vowels-baselines"] = {"plain": [0.95], "random": [0.5, 0.7]}
    results["japanese_vowels-padding"] = {"bucketing": 0.05, "shuffled": 0.3}
    for hidden in real_series.HIDDEN:
        for bucketing in (True, False):
            speeds = [900.0, 100.0, 300.0] if bucketing else [200.0, 100.0, 400.0]
            for run, speed in zip(real_series.speed_runs(hidden, bucketing=bucketing), speeds, strict=True):
                results[run.name] = {"sequences": 10 * speed, "cpu_seconds": 10.0}
    lines = real_series.table(results).splitlines()
    # Standard deviation of the eight: 2.39; times 2.365 / sqrt(8).
    row = "| JapaneseVowels, accuracy in % | `tbptt` | lr 0.003 | 93.00 ± 2.00 | 90.00–96.00 | 75.00 | 1,350 |"
    assert row in lines
    assert any("| `fptt` | lr 0.001, α 0.05 | 93.10 ± 2.00 |" in line for line in lines)
    assert not any("| `bptt` |" in line for line in lines)
    assert "| JapaneseVowels | `fptt` − `tbptt` | +0.10 ± 0.00 | on par |" in lines
    assert "| JapaneseVowels, accuracy in % | plain | | 95.00 |  | | |" in lines
    assert any("| random | | 60.00 ± 127.06 | 50.00–70.00 | | |" in line for line in lines)  # t of one degree: 12.706
    assert lines[-2:] == ["| false | 30.0 % | 256 | 200 | 1.00 |", "| true | 5.0 % | 256 | 300 | 1.50 |"]


@pytest.mark.parametrize(
    ("mean", "half", "higher", "meaning"),
    [
        (0.5, 0.4, True, "on par"),
        (0.5, 0.6, True, "not decided"),
        (2.0, 1.5, True, "better"),
        (2.0, 1.5, False, "worse"),
        (-2.0, 1.5, False, "better"),
        (-0.9, 0.2, True, "worse"),
    ],
)
def test_on_par_needs_the_whole_interval_within_one(mean: float, half: float, higher: bool, meaning: str) -> None:
    assert real_series.verdict(mean, half, higher_is_better=higher) == meaning


def test_log_loss_over_two_batches_is_scikit_learns() -> None:
    probabilities = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    targets = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    metric = LogLoss()
    metric.update(probabilities[:5], targets[:5])
    metric.update(probabilities[5:], targets[5:])
    assert metric.compute().item() == pytest.approx(log_loss(targets.numpy(), probabilities.numpy()))


def test_random_kernels_do_not_see_the_padding() -> None:
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((steps, 3)).astype(np.float32) for steps in (4, 30, 11)]
    kernels = draw_kernels(series, 40, 0)
    together = kernel_features(series, kernels)
    assert np.isfinite(together).all()
    assert together.std() > 0.1
    for row, each in enumerate(series):
        np.testing.assert_allclose(kernel_features([each], kernels)[0], together[row], rtol=1e-5, atol=1e-5)


def test_warped_distances_of_unequal_series() -> None:
    short, long, other = (np.array(values, np.float32)[:, None] for values in ([0, 2], [0, 0, 2, 2, 2], [1, 3, 3]))
    # other to short: 1-0, 3-2, 3-2; other to itself 0.
    np.testing.assert_allclose(dtw_distances([long, other], [short, other]), [[0, 1 + 1 + 1 + 1 + 1], [3, 0]])


def test_forecasts_of_a_period_of_eleven_years() -> None:
    years = np.arange(1700, 1980)
    numbers = (50 + 40 * np.sin(2 * np.pi * years / 11)).astype(np.float32)
    errors = forecasters(years, numbers)
    assert errors["eleven years before"][0] == pytest.approx(0, abs=1e-3)
    assert errors["autoregression on 9 years"][0] == pytest.approx(0, abs=1e-2)
    assert errors["persistence"][0] == pytest.approx(np.sqrt(2) * 40 * np.sin(np.pi / 11), rel=0.05)
