"""A recurrent layer and its output layer."""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent import describe_layer, recurrent_layer
from fptt_dist.types import State


class Network(nn.Module):
    """A recurrent layer with a linear output layer: `(x, state) → (y, state)`, time-major.

    With `symbols`, x holds ids (S, B) and an embedding, drawn from U(−0.1, 0.1), stands in front.

    Args:
        recurrent: `(x (S, B, I), state) → (h (S, B, H), state)`.
        hidden: H.
        outputs: O.
        output_steps: "all" gives an output for each step, "last" for the window's last step alone.
        symbols: V, how many ids there are; None: x holds features.
        embedding: I where there are symbols, the width of the embedding.
        dropout: probability of dropping an element of the embedded inputs and of the output layer's inputs (as
            in PyTorch's word language model); without effect where there are no symbols.
        output_dropout: probability of dropping an output, in training.

    Raises:
        ValueError: one of `symbols` and `embedding` without the other.
    """

    def __init__(
        self,
        recurrent: nn.Module,
        hidden: int,
        outputs: int,
        *,
        output_steps: Literal["last", "all"] = "all",
        symbols: int | None = None,
        embedding: int | None = None,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if (symbols is None) != (embedding is None):
            raise ValueError(f"symbols={symbols} and embedding={embedding}: give both, or neither")
        self.recurrent = recurrent
        self.readout = nn.Linear(hidden, outputs)
        self.output_steps = output_steps
        self.dropout = dropout
        self.output_dropout = output_dropout
        self.embedding: nn.Embedding | None = None
        if symbols is not None and embedding is not None:
            self.embedding = nn.Embedding(symbols, embedding)
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Outputs (S or 1, B, O) of one window and the state after it."""
        if self.embedding is not None:
            x = self._drop(self.embedding(x), self.dropout)
        hidden, state = self.recurrent(x, state)
        hidden = hidden if self.output_steps == "all" else hidden[-1:]
        if self.embedding is not None:
            hidden = self._drop(hidden, self.dropout)
        return self._drop(self.readout(hidden), self.output_dropout), state

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: of the recurrent layer alone ("recurrent", the paper's way of counting) and "total"."""
        return {
            "recurrent": sum(p.numel() for p in self.recurrent.parameters()),
            "total": sum(p.numel() for p in self.parameters()),
        }

    def describe(self) -> dict[str, Any]:
        """Return the arguments (plain JSON values) from which `rebuild` makes a network like this one."""
        embedding = self.embedding
        return {
            "recurrent": describe_layer(self.recurrent),
            "outputs": self.readout.out_features,
            "output_steps": self.output_steps,
            "symbols": None if embedding is None else embedding.num_embeddings,
            "embedding": None if embedding is None else embedding.embedding_dim,
            "dropout": self.dropout,
            "output_dropout": self.output_dropout,
        }

    @classmethod
    def rebuild(cls, *, recurrent: dict[str, Any], **others: Any) -> "Network":
        """Make a newly initialized network from the arguments that `describe` returned."""
        return cls(recurrent_layer(**recurrent), recurrent["hidden"], **others)

    def _drop(self, values: Tensor, probability: float) -> Tensor:
        return functional.dropout(values, probability) if self.training and probability > 0 else values
