"""FPTT with a spiking network (snntorch): leaky neurons with surrogate gradients, the membranes carried from window to
window.

Type:

    pip install -c constraints.txt -e '.[examples]'
    python examples/spiking.py              FPTT
    python examples/spiking.py --alpha 0    the same windows without the regularizer

Each of five classes is a pattern of firing rates over 20 channels, all between 3 and 7 % per step. A few steps say
almost nothing; over 100 steps a listener who knows the rates decides best by adding up logarithms, and that bound is
printed too. Two layers of leaky integrate-and-fire neurons read the spikes; the answer is the output neuron that fires
most.

It prints the accuracy on new spike trains after every 100 batches, and last that of W̄ beside guessing and the bound.

Effect of the regularizer here: none that is needed; `--alpha 0` is as good. What windows save a spiking network is
memory: the graph covers one window of 20 steps at a time, however long the sequence.
"""

import argparse

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

from fptt_dist import FPTT, window_slices

STEPS, WINDOWS, BATCH, CLASSES, CHANNELS = 100, 5, 64, 5, 20
State = list[Tensor]

parser = argparse.ArgumentParser(description="FPTT with a spiking network")
parser.add_argument("--steps", type=int, default=300, help="batches (default: 300)")
parser.add_argument("--alpha", type=float, default=0.5, help="strength of the regularizer; 0: none (default: 0.5)")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()


class SpikingNetwork(nn.Module):
    """Linear → leaky neurons → linear → leaky neurons."""

    def __init__(self) -> None:
        super().__init__()
        gradient = surrogate.fast_sigmoid(slope=10)
        self.to_hidden, self.to_output = nn.Linear(CHANNELS, 64), nn.Linear(64, CLASSES)
        self.hidden = snn.Leaky(beta=0.9, spike_grad=gradient)
        self.output = snn.Leaky(beta=0.9, spike_grad=gradient)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read spikes x (S, B, channels) from the membranes `state` on; return spikes (S, B, classes) and membranes."""
        if state is None:
            state = [x.new_zeros(x.shape[1], 64), x.new_zeros(x.shape[1], CLASSES)]
        hidden_membrane, output_membrane = state
        spikes = []
        for current in self.to_hidden(x):
            fired, hidden_membrane = self.hidden(current, hidden_membrane)
            fired, output_membrane = self.output(self.to_output(fired), output_membrane)
            spikes.append(fired)
        return torch.stack(spikes), [hidden_membrane, output_membrane]


torch.manual_seed(options.seed)
rates = 0.03 + 0.04 * torch.rand(CLASSES, CHANNELS)


def spike_trains(sequences: int) -> tuple[Tensor, Tensor]:
    """Spikes (T, B, channels) and the class whose rates made them (B,)."""
    labels = torch.randint(CLASSES, (sequences,))
    return torch.bernoulli(rates[labels].expand(STEPS, -1, -1)), labels


network = SpikingNetwork()
optimizer = FPTT(torch.optim.Adam(network.parameters(), lr=1e-3), alpha=options.alpha, metric="preconditioned")
test_x, test_y = spike_trains(1000)
likelihood = test_x.sum(0) @ rates.log().T + (STEPS - test_x.sum(0)) @ (1 - rates).log().T
bound = (likelihood.argmax(-1) == test_y).double().mean().item()


@torch.no_grad()
def accuracy() -> float:
    """Share of the test spike trains whose class fires most, with W̄."""
    with optimizer.at_center():
        return (network(test_x)[0].sum(0).argmax(-1) == test_y).double().mean().item()


for batch in range(1, options.steps + 1):
    x, y = spike_trains(BATCH)
    state = None
    for part in window_slices(STEPS, WINDOWS):
        spikes, state = network(x[part], state)
        nn.functional.cross_entropy(spikes.sum(0), y).backward()  # rate code: the window's spike counts are the logits
        optimizer.step()
        optimizer.zero_grad()
        state = [membrane.detach() for membrane in state]
    if batch % 100 == 0:
        print(f"batch {batch}: accuracy {accuracy():.1%}", flush=True)

print(f"accuracy {accuracy():.1%}, guessing: {1 / CLASSES:.1%}, who knows the rates: {bound:.1%}")
