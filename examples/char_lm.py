"""A character language model of a text of yours, trained with FPTT, its state carried along the text.

Type:

    python examples/char_lm.py my_book.txt
    python examples/char_lm.py                 on a text that comes with Python: its language reference

The first 90 % of the text are read as 32 streams side by side, in sequences of 100 characters and 5 windows each; the
state goes from window to window and from sequence to sequence. The last 10 % are held out: it prints the bits per
character on them, beside those of the letters' frequencies alone (unigrams) and of the letters after one or two others
(bigrams, trigrams, smoothed), and then lets the model write a few lines. The vocabulary is the whole text's.

Effect of the regularizer here: next to none; `--alpha 0` ends within 0.01 bits. On a text of your own try both, and
choose on a part of the text that you do not report.

`fptt-dist train paper/ptb300_fptt.yaml task.text_dir=… task.token_level=character` is the framework's own way, with
baselines, checkpoints and several workers.
"""

import argparse
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from fptt_dist import FPTT, window_slices

STREAMS, LENGTH, WINDOWS, HIDDEN = 32, 100, 5, 192
State = tuple[Tensor, Tensor]


class CharacterModel(nn.Module):
    """Embedding → LSTM → logits of the next character."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(symbols, 48), nn.LSTM(48, HIDDEN)
        self.readout = nn.Linear(HIDDEN, symbols)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (T, B, symbols) after each of the characters x (T, B), and the state after the last."""
        hidden, after = self.lstm(self.embedding(x), state)
        return self.readout(hidden), after


def read(path: Path | None) -> str:
    """The text.

    Raises:
        SystemExit: it cannot be read or is too short; the message says what was expected.
    """
    if path is None:
        return "\n".join(topics[name] for name in sorted(topics))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path} cannot be read as UTF-8 text: {error}")
    needed = 2 * STREAMS * (LENGTH + 1)
    if len(text) < needed:
        sys.exit(f"{path} has {len(text)} characters, expected at least {needed}: give a longer text")
    return text


def n_gram_bits(train: Tensor, held_out: Tensor, symbols: int) -> list[float]:
    """Bits per character of `held_out` under 1-, 2- and 3-grams counted in `train`, each smoothed with the one before.

    p_n(c | context) = (count of context and c + s p_{n−1}(c)) / (count of context + s), with p₀ = 1/symbols, s = 5.
    """
    bits, smoothing, p = [], 5.0, torch.full((len(held_out) - 2,), 1.0 / symbols, dtype=torch.float64)
    context, asked_context = torch.zeros_like(train[2:]), torch.zeros_like(held_out[2:])
    for n in range(1, 4):
        joint = counts(context * symbols + train[2:], asked_context * symbols + held_out[2:])
        p = (joint + smoothing * p) / (counts(context, asked_context) + smoothing)
        bits.append(-p.log2().mean().item())
        if n < 3:
            context = context * symbols + train[2 - n : -n]
            asked_context = asked_context * symbols + held_out[2 - n : -n]
    return bits


def counts(seen: Tensor, asked: Tensor) -> Tensor:
    """Count each of `asked` in `seen` (float64)."""
    values, number = seen.unique(return_counts=True)
    place = torch.searchsorted(values, asked).clamp_(max=len(values) - 1)
    return torch.where(values[place] == asked, number[place], 0).double()


@torch.no_grad()
def model_bits(model: CharacterModel, text: Tensor) -> float:
    """Bits per character of `text`, read once from its beginning to its end."""
    state, total = None, 0.0
    for start in range(0, len(text) - 1, 1000):
        piece = text[start : start + 1001].unsqueeze(1)
        logits, state = model(piece[:-1], state)
        total += nn.functional.cross_entropy(logits.squeeze(1), piece[1:, 0], reduction="sum").item()
    return total / (len(text) - 1) / torch.log(torch.tensor(2.0)).item()


@torch.no_grad()
def write(model: CharacterModel, prompt: Tensor, characters: int) -> list[int]:
    """Characters drawn one after the other, after the prompt (T,)."""
    logits, state = model(prompt.unsqueeze(1))
    drawn = []
    for _ in range(characters):
        symbol = torch.multinomial((logits[-1, 0] / 0.7).softmax(-1), 1)
        drawn.append(symbol.item())
        logits, state = model(symbol.unsqueeze(1), state)
    return drawn


def main() -> None:
    """Train, print the held-out bits beside the baselines', and write."""
    parser = argparse.ArgumentParser(description="A character language model of a text of yours, with FPTT")
    parser.add_argument("text", type=Path, nargs="?", help="a UTF-8 file (default: Python's language reference)")
    parser.add_argument("--steps", type=int, default=120, help="sequences per stream (default: 120)")
    parser.add_argument("--alpha", type=float, default=0.1, help="strength of the regularizer; 0: none (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    text = read(options.text)
    vocabulary = sorted(set(text))
    index = {symbol: place for place, symbol in enumerate(vocabulary)}
    ids = torch.tensor([index[symbol] for symbol in text])
    train, held_out = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
    streams = train[: len(train) // STREAMS * STREAMS].view(STREAMS, -1).T  # (characters of a stream, streams)
    print(f"{len(train)} characters to train on, {len(held_out)} held out, {len(vocabulary)} different ones")

    torch.manual_seed(options.seed)
    model = CharacterModel(len(vocabulary))
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    optimizer = FPTT(adam, alpha=options.alpha, metric="preconditioned", max_norm=1.0)
    state, start = None, 0
    for _ in range(options.steps):
        if start + LENGTH + 1 > len(streams):
            state, start = None, 0  # the streams' end: read them again
        x, y = streams[start : start + LENGTH], streams[start + 1 : start + LENGTH + 1]
        for part in window_slices(LENGTH, WINDOWS):
            logits, state = model(x[part], state)
            nn.functional.cross_entropy(logits.flatten(0, 1), y[part].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            state = (state[0].detach(), state[1].detach())
        start += LENGTH

    with optimizer.at_center():
        bits = model_bits(model, held_out)
        written = write(model, train[-200:], 300)
    unigrams, bigrams, trigrams = n_gram_bits(train, held_out, len(vocabulary))
    print(
        f"held-out bits per character: {bits:.3f} (unigrams {unigrams:.3f}, bigrams {bigrams:.3f}, "
        f"trigrams {trigrams:.3f})\n"
    )
    print("".join(vocabulary[symbol] for symbol in written))


if __name__ == "__main__":
    main()
