"""A recurrent layer and its read-out."""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent import describe_layer, recurrent_layer


class Network(nn.Module):
    """A recurrent layer with a linear read-out: `(x, state) → (y, state)`, time-major.

    With `symbols`, x holds ids (S, B) and an embedding, drawn from U(−0.1, 0.1), stands in front.

    Args:
        recurrent: `(x (S, B, I), state) → (h (S, B, H), state)`.
        hidden: H.
        outputs: O.
        reads: "every" gives an output for each step, "last" for the window's last step alone.
        symbols: V, how many ids there are; None: x holds numbers.
        embedding: I where there are symbols, numbers an id is embedded in.
        dropout: probability of dropping an element of the embedded inputs and of what the read-out reads (as in
            PyTorch's word language model); without effect where there are no symbols.
        logit_dropout: probability of dropping an output, in training.

    Raises:
        ValueError: one of `symbols` and `embedding` without the other.
    """

    def __init__(
        self,
        recurrent: nn.Module,
        hidden: int,
        outputs: int,
        *,
        reads: Literal["last", "every"] = "every",
        symbols: int | None = None,
        embedding: int | None = None,
        dropout: float = 0.0,
        logit_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if (symbols is None) != (embedding is None):
            raise ValueError(f"symbols={symbols} and embedding={embedding}: give both, or neither")
        self.recurrent = recurrent
        self.readout = nn.Linear(hidden, outputs)
        self.reads = reads
        self.dropout = dropout
        self.logit_dropout = logit_dropout
        self.embedding: nn.Embedding | None = None
        if symbols is not None and embedding is not None:
            self.embedding = nn.Embedding(symbols, embedding)
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs (S or 1, B, O) of one window and the state after it."""
        if self.embedding is not None:
            x = self._drop(self.embedding(x), self.dropout)
        hidden, state = self.recurrent(x, state)
        hidden = hidden if self.reads == "every" else hidden[-1:]
        if self.embedding is not None:
            hidden = self._drop(hidden, self.dropout)
        return self._drop(self.readout(hidden), self.logit_dropout), state

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: of the recurrent layer alone ("recurrent", the paper's way of counting) and "total"."""
        return {
            "recurrent": sum(p.numel() for p in self.recurrent.parameters()),
            "total": sum(p.numel() for p in self.parameters()),
        }

    def describe(self) -> dict[str, Any]:
        """What `rebuild` makes a network like this one from (plain JSON values)."""
        embedding = self.embedding
        return {
            "recurrent": describe_layer(self.recurrent),
            "outputs": self.readout.out_features,
            "reads": self.reads,
            "symbols": None if embedding is None else embedding.num_embeddings,
            "embedding": None if embedding is None else embedding.embedding_dim,
            "dropout": self.dropout,
            "logit_dropout": self.logit_dropout,
        }

    @classmethod
    def rebuild(cls, *, recurrent: dict[str, Any], **others: Any) -> "Network":
        """A network, newly drawn, from what `describe` said."""
        return cls(recurrent_layer(**recurrent), recurrent["hidden"], **others)

    def _drop(self, values: Tensor, probability: float) -> Tensor:
        return functional.dropout(values, probability) if self.training and probability > 0 else values
