"""Plain baselines of benchmarks/real_series.py, fitted to all training series."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

KERNELS = 2000
LOGISTIC: dict[str, Any] = {
    "Cs": np.logspace(-3, 2, 6),
    "cv": 5,
    "l1_ratios": (0.0,),  # L2 alone
    "max_iter": 2000,
    "scoring": "accuracy",
    "use_legacy_attributes": False,
}


def classifiers(train: dict[str, Any], test: dict[str, Any], *, seeds: int) -> dict[str, list[float]]:
    """Return the test accuracies of each baseline, one for each seed where it has one.

    Args:
        train: inputs (sum of the lengths, C), lengths (N,), targets (N,).
        test: the same.
        seeds: of the random kernels.
    """
    mean, std = train["inputs"].mean(0), train["inputs"].std(0)
    parts = [np.split((part["inputs"] - mean) / std, np.cumsum(part["lengths"])[:-1]) for part in (train, test)]
    features = [np.array([summary(each) for each in part]) for part in parts]
    logistic = make_pipeline(StandardScaler(), LogisticRegressionCV(**LOGISTIC))
    logistic.fit(features[0], train["targets"])
    found = {"logistic regression on summaries": [float(logistic.score(features[1], test["targets"]))]}
    raw = [np.split(part["inputs"], np.cumsum(part["lengths"])[:-1]) for part in (train, test)]
    nearest = train["targets"][dtw_distances(raw[1], raw[0]).argmin(1)]
    found["nearest neighbor, DTW"] = [float(np.mean(nearest == test["targets"]))]
    rocket = f"{KERNELS:,} random kernels, ridge"
    found[rocket] = []
    for seed in range(seeds):
        kernels = draw_kernels(parts[0], KERNELS, seed)
        random = [kernel_features(part, kernels) for part in parts]
        ridge = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)))
        ridge.fit(random[0], train["targets"])
        found[rocket].append(float(ridge.score(random[1], test["targets"])))
    return found


def summary(series: NDArray) -> NDArray:
    """Return what summarizes a series (T, C) whatever its length: T, and of each channel five numbers."""
    parts = [series.mean(0), series.std(0), series.min(0), series.max(0), series[-1] - series[0]]
    return np.concatenate([[len(series)], *parts])


def dtw_distances(series: list[NDArray], others: list[NDArray]) -> NDArray:
    """Return the dynamic time warping distances (N, M) of series (T, C), all channels warped together.

    Squared Euclidean distances of steps, any warping.
    """
    found = np.empty((len(series), len(others)))
    lengths = np.array([len(each) for each in others])
    padded = np.zeros((len(others), lengths.max(), others[0].shape[1]))
    for row, each in enumerate(others):
        padded[row, : len(each)] = each
    for row, each in enumerate(series):
        steps = np.square(each[:, None, None].astype(np.float64) - padded).sum(3)  # (T, M, longest)
        above = np.full((len(others), lengths.max() + 1), np.inf)
        above[:, 0] = 0
        for step in steps:
            best = np.minimum(above[:, 1:], above[:, :-1])
            here = np.full_like(above, np.inf)
            for column in range(lengths.max()):
                here[:, column + 1] = step[:, column] + np.minimum(best[:, column], here[:, column])
            above = here
        found[row] = above[np.arange(len(others)), lengths]
    return found


@dataclass(frozen=True)
class Kernel:
    """A random dilated convolution.

    Attributes:
        channels: (S,) those that it reads.
        weights: (S, size).
        bias: added.
        dilation: steps from one weight to the next.
        padded: whether it also reads positions that lie half outside the series.
    """

    channels: NDArray
    weights: NDArray
    bias: float
    dilation: int
    padded: bool


def draw_kernels(series: list[NDArray], number: int, seed: int) -> list[Kernel]:
    """Draw kernels for series (T, C), as ROCKET does (Dempster et al. 2020), dilated up to the median T."""
    rng = np.random.default_rng(seed)
    channels, length = series[0].shape[1], np.median([len(each) for each in series])
    kernels = []
    for _ in range(number):
        size = int(rng.choice([7, 9, 11]))
        chosen = rng.choice(channels, int(2 ** rng.uniform(0, np.log2(channels + 1))), replace=False)
        weights = rng.standard_normal((len(chosen), size))
        dilation = int(2 ** rng.uniform(0, max(0.0, np.log2((length - 1) / (size - 1)))))
        weights -= weights.mean(1, keepdims=True)
        kernels.append(Kernel(chosen, weights, float(rng.uniform(-1, 1)), dilation, bool(rng.uniform() < 0.5)))
    return kernels


def kernel_features(series: list[NDArray], kernels: list[Kernel]) -> NDArray:
    """Return each kernel's largest value and share of positive values.

    Of a series (T, C) only the positions that belong to its own T steps count.

    Returns:
        (N, 2 · kernels).
    """
    lengths = torch.tensor([len(each) for each in series])
    values = torch.zeros(len(series), series[0].shape[1], int(lengths.max()))
    for row, each in enumerate(series):
        values[row, :, : len(each)] = torch.from_numpy(each).T
    found = []
    for kernel in kernels:
        span = (kernel.weights.shape[1] - 1) * kernel.dilation
        before = span // 2 if kernel.padded else 0
        inputs = functional.pad(values[:, kernel.channels], (before, span))
        weights = torch.from_numpy(kernel.weights).float()[None]
        output = functional.conv1d(inputs, weights, dilation=kernel.dilation)[:, 0] + kernel.bias
        counts = (lengths + 2 * before - span).clamp_min(1)  # a kernel longer than the series: one position
        own = torch.arange(output.shape[1]) < counts[:, None]
        found += [output.masked_fill(~own, -torch.inf).amax(1), ((output > 0) & own).sum(1) / counts]
    return torch.stack(found, 1).numpy()


def forecasters(years: NDArray, numbers: NDArray) -> dict[str, list[float]]:
    """Return the root mean squared errors of one-year forecasts of 1921 to 1955, fitted to the years up to 1920."""
    test = (years >= 1921) & (years <= 1955)
    found = {
        "persistence": _error(numbers[:-1], numbers[1:], test[1:]),
        "eleven years before": _error(numbers[:-11], numbers[11:], test[11:]),
    }
    for order in (9, 12):
        rows = np.stack([*(numbers[lag : len(numbers) - order + lag] for lag in range(order))], 1).astype(np.float64)
        rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
        right = numbers[order:].astype(np.float64)
        fit = years[order:] <= 1920
        forecast = rows @ np.linalg.lstsq(rows[fit], right[fit], rcond=None)[0]
        found[f"autoregression on {order} years"] = _error(forecast, right, test[order:])
    return found


def _error(forecast: NDArray, right: NDArray, chosen: NDArray) -> list[float]:
    return [float(np.sqrt(np.mean((forecast - right)[chosen].astype(np.float64) ** 2)))]
