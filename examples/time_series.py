"""Forecasting a real series with FPTT: next year's sunspot number from all years before.

Type:

    pip install -c constraints.txt -e '.[examples]'
    python examples/time_series.py

The series is the yearly mean sunspot number from 1700 to 2008, which statsmodels brings along. It is split in time:
training to 1899, validation to 1949, test from 1950 on; it is scaled by the training years' mean and deviation. An LSTM
reads the years one by one and says the difference to the next, trained on the whole training part (BPTT), or with
K = 8 updates along it, without the regularizer (tbptt) or with it (FPTT). All three have the same number of passes over
the training years; the learning rate and the pass to stop at are chosen by the validation error, from the same choices.

It prints the root mean squared error of one step ahead, beside three forecasts that train no network: the year before
(persistence), eleven years before (seasonal naive), a linear autoregression on nine years (least squares).

Effect of the regularizer here: FPTT is better on the test years and not on the validation years, so nobody could have
chosen it by them. The series is short, seeds differ by as much as methods, and the autoregression has ten coefficients
to fit.
"""

import argparse
import math
from typing import Any

import torch
from statsmodels.datasets import sunspots
from torch import Tensor, nn

from fptt_dist import FPTT, window_slices

TRAIN_TO, VALIDATE_TO, WINDOWS, HIDDEN = 1899, 1949, 8, 16

parser = argparse.ArgumentParser(description="Forecasting sunspot numbers with FPTT")
parser.add_argument("--passes", type=int, default=120, help="over the training years (default: 120)")
parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: 3)")
options = parser.parse_args()

table: Any = sunspots.load_pandas().data
years = torch.tensor(table["YEAR"].to_numpy(dtype="int64"))
series = torch.tensor(table["SUNACTIVITY"].to_numpy(dtype="float32"))
train, validation, test = years <= TRAIN_TO, (years > TRAIN_TO) & (years <= VALIDATE_TO), years > VALIDATE_TO
mean, scale = series[train].mean(), series[train].std()
scaled = (series - mean) / scale


def error(forecast: Tensor, part: Tensor) -> float:
    """Root mean squared error of the forecasts (one per year from the second on) in the years of `part`."""
    return (forecast - series[1:])[part[1:]].square().mean().sqrt().item()


def autoregression(order: int = 9) -> Tensor:
    """Least squares on the `order` years before, fitted on the training years."""
    rows = torch.stack(
        [scaled[i : len(scaled) - order + i] for i in range(order)] + [torch.ones(len(scaled) - order)], 1
    )
    fit = train[order:]
    weights = torch.linalg.lstsq(rows[fit].double(), scaled[order:][fit].double()).solution
    forecast = torch.full((len(scaled) - 1,), math.nan)
    forecast[order - 1 :] = (rows.double() @ weights).float() * scale + mean
    return forecast


class Forecaster(nn.Module):
    """An LSTM that reads years (T, 1, 1) and says the next year's number, as a difference to this year's."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.readout = nn.LSTM(1, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Forecasts (T, 1, 1) and the state."""
        hidden, after = self.lstm(x, state)
        return x + self.readout(hidden), after


def train_network(windows: int, alpha: float, lr: float, seed: int) -> tuple[float, Tensor]:
    """The lowest validation error over the passes, and the forecasts of the weights that had it."""
    torch.manual_seed(seed)
    model = Forecaster()
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    optimizer = FPTT(adam, alpha=alpha, metric="preconditioned" if alpha else "euclidean", max_norm=1.0)
    x = scaled[train][:-1].view(-1, 1, 1)
    y = scaled[train][1:].view(-1, 1, 1)
    best, kept = math.inf, torch.empty(0)
    for _ in range(options.passes):
        state = None
        for part in window_slices(len(x), windows):
            forecast, state = model(x[part], state)
            (forecast - y[part]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            state = (state[0].detach(), state[1].detach())
        with torch.no_grad():
            if alpha:
                with optimizer.at_center():
                    forecast = model(scaled[:-1].view(-1, 1, 1))[0].flatten() * scale + mean
            else:
                forecast = model(scaled[:-1].view(-1, 1, 1))[0].flatten() * scale + mean
        if (found := error(forecast, validation)) < best:
            best, kept = found, forecast
    return best, kept


METHODS = {
    "LSTM, BPTT": (1, 0.0),
    f"LSTM, tbptt, K = {WINDOWS}": (WINDOWS, 0.0),
    f"LSTM, FPTT, K = {WINDOWS}": (WINDOWS, 0.5),
}
RATES = (3e-3, 1e-2)

print(f"{'root mean squared error':24} {'validation':>10} {'test':>6}")
seasonal = torch.cat([torch.full((10,), math.nan), series[:-11]])
for name, forecast in {
    "persistence": series[:-1],
    "seasonal naive, 11 years": seasonal,
    "autoregression, 9 years": autoregression(),
}.items():
    print(f"{name:24} {error(forecast, validation):10.2f} {error(forecast, test):6.2f}")
for name, (windows, alpha) in METHODS.items():
    runs = [[train_network(windows, alpha, lr, seed) for seed in range(options.seeds)] for lr in RATES]
    chosen = min(runs, key=lambda of_rate: sum(best for best, _ in of_rate))
    errors = torch.tensor([error(forecast, test) for _, forecast in chosen])
    mean_validation = sum(best for best, _ in chosen) / len(chosen)
    spread = " ".join(f"{value:.2f}" for value in errors.tolist())
    print(f"{name:24} {mean_validation:10.2f} {errors.mean():6.2f}   (seeds: {spread})", flush=True)
