"""The language model AWD-LSTM (Merity et al. 2018, "Regularizing and optimizing LSTM language models").

With experts it ends in a mixture of softmaxes (Yang et al. 2018, "Breaking the softmax bottleneck").
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.weight_drop import WeightDropLSTM
from fptt_dist.models.window_state import WindowState, hidden_of
from fptt_dist.types import State


class AwdLstm(nn.Module):
    """`(ids (S, B), state) → (y (S, B, V), state)`, time-major: embedding, LSTM layers, decoder.

    y are logits; with experts they are log-probabilities, log Σ_e π_e softmax(logits_e), so that one cross-entropy
    serves both.

    The recurrent state is one (h, c) per layer, each (1, B, ·). In training it comes out in a `WindowState` where there
    are masks to keep or a penalty. An incoming state without masks begins a new sequence.

    All dropout is by masks over a whole sequence or window: a dropped id, unit or weight is missing at every step.

    Args:
        symbols: V.
        embedding: width of the embedding.
        hidden: units of all layers but the last.
        last_hidden: units of the last layer; None: `embedding`.
        layers: how many are stacked.
        num_experts: softmaxes that are mixed; 1: a plain decoder.
        tie_weights: whether the decoder's weights are the embedding's.
        weight_drop: probability of dropping a recurrent weight (W_hh of every layer).
        dropout_embedding: of dropping an id, wherever it stands.
        dropout_input: of dropping a unit of the embedded ids.
        dropout_hidden: of dropping a unit between layers.
        dropout_output: of dropping a unit of the last layer.
        dropout_latent: of dropping a unit of the experts' inputs.
        dropout_mask_scope: masks are drawn once per "sequence", or anew for each "window".
        activation_penalty: factor of the mean of h² of the last layer, after dropout.
        temporal_penalty: factor of the mean of (h_t − h_{t−1})² of the last layer, before dropout, within the window.

    Raises:
        ValueError: a decoder tied to an embedding of another width.
    """

    output_steps = "all"

    def __init__(
        self,
        symbols: int,
        *,
        embedding: int,
        hidden: int,
        last_hidden: int | None,
        layers: int,
        num_experts: int = 1,
        tie_weights: bool = True,
        weight_drop: float,
        dropout_embedding: float,
        dropout_input: float,
        dropout_hidden: float,
        dropout_output: float,
        dropout_latent: float = 0.0,
        dropout_mask_scope: Literal["sequence", "window"] = "sequence",
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        last = embedding if last_hidden is None else last_hidden
        if tie_weights and num_experts == 1 and last != embedding:
            raise ValueError(
                f"last_hidden={last}: a decoder tied to the embedding reads embedding={embedding} features; leave "
                "last_hidden out, or use num_experts > 1 or tie_weights=False"
            )
        self.num_experts = num_experts
        self.tie_weights = tie_weights
        self.weight_drop = weight_drop
        self.dropout_embedding = dropout_embedding
        self.dropout_input = dropout_input
        self.dropout_hidden = dropout_hidden
        self.dropout_output = dropout_output
        self.dropout_latent = dropout_latent
        self.dropout_mask_scope: Literal["sequence", "window"] = dropout_mask_scope
        self.activation_penalty = activation_penalty
        self.temporal_penalty = temporal_penalty
        self.hidden = hidden
        self.widths = [hidden] * (layers - 1) + [last]
        self.embedding = nn.Embedding(symbols, embedding)
        self.recurrent = nn.ModuleList(map(WeightDropLSTM, [embedding, *self.widths], self.widths))
        self.latent = nn.Linear(last, num_experts * embedding) if num_experts > 1 else None
        self.prior = nn.Linear(last, num_experts, bias=False) if num_experts > 1 else None
        read = embedding if num_experts > 1 else last
        self.decoder_weight = None if tie_weights else nn.Parameter(torch.empty(symbols, read).uniform_(-0.1, 0.1))
        self.decoder_bias = nn.Parameter(torch.zeros(symbols))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Outputs (S, B, V) of one window and the state after it."""
        masks = self._masks_for(x, state) if self.training else {}
        h = self.embedding(x)
        if "embedding" in masks:
            h = h * functional.embedding(x, masks["embedding"])
        h = _masked(h, masks.get("input"))
        hidden = hidden_of(state)
        ends = []
        raw = h
        for i, layer in enumerate(self.recurrent):
            raw, end = layer(h, None if hidden is None else hidden[i], masks.get(f"weight.{i}"))
            ends.append(end)
            h = _masked(raw, masks.get("output" if i == len(self.recurrent) - 1 else f"hidden.{i}"))
        outputs = self._mixture(h, masks) if self.num_experts > 1 else self._decode(h)
        penalty = self._penalty(raw, h) if self.training else None
        kept = masks if masks and self.dropout_mask_scope == "sequence" else None
        after = tuple(ends)
        return outputs, after if kept is None and penalty is None else WindowState(after, kept, penalty)

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: of the LSTM layers alone ("recurrent") and "total"."""
        return {
            "recurrent": sum(p.numel() for p in self.recurrent.parameters()),
            "total": sum(p.numel() for p in self.parameters()),
        }

    def describe(self) -> dict[str, Any]:
        """Return the arguments (plain JSON values) from which `rebuild` makes a network like this one."""
        names = (
            *(
                "hidden",
                "num_experts",
                "tie_weights",
                "weight_drop",
                "dropout_embedding",
                "dropout_input",
                "dropout_hidden",
            ),
            *("dropout_output", "dropout_latent", "dropout_mask_scope", "activation_penalty", "temporal_penalty"),
        )
        return {
            "symbols": self.embedding.num_embeddings,
            "embedding": self.embedding.embedding_dim,
            "layers": len(self.recurrent),
            "last_hidden": self.widths[-1],
            **{name: getattr(self, name) for name in names},
        }

    @classmethod
    def rebuild(cls, **description: Any) -> "AwdLstm":
        """Make a newly initialized network from the arguments that `describe` returned."""
        return cls(**description)

    def _masks_for(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """The sequence's masks, or new ones: 0 where dropped, else 1/(1−p)."""
        if isinstance(state, WindowState) and state.masks is not None:
            return state.masks
        batch, weight = x.shape[1], self.embedding.weight
        wanted: dict[str, tuple[float, tuple[int, ...]]] = {
            "embedding": (self.dropout_embedding, (weight.shape[0], 1)),
            "input": (self.dropout_input, (1, batch, weight.shape[1])),
            "output": (self.dropout_output, (1, batch, self.widths[-1])),
        }
        for i, width in enumerate(self.widths[:-1]):
            wanted[f"hidden.{i}"] = self.dropout_hidden, (1, batch, width)
        for i, width in enumerate(self.widths):
            wanted[f"weight.{i}"] = self.weight_drop, (4 * width, width)
        if self.num_experts > 1:
            wanted["latent"] = self.dropout_latent, (1, batch, self.num_experts * weight.shape[1])
        return {
            name: torch.empty(shape, dtype=weight.dtype, device=weight.device).bernoulli_(1 - p).div_(1 - p)
            for name, (p, shape) in wanted.items()
            if p > 0
        }

    def _decode(self, h: Tensor) -> Tensor:
        weight = self.embedding.weight if self.decoder_weight is None else self.decoder_weight
        return functional.linear(h, weight, self.decoder_bias)

    def _mixture(self, h: Tensor, masks: dict[str, Tensor]) -> Tensor:
        """log Σ_e π_e softmax(logits_e) (S, B, V), in full precision."""
        assert self.latent is not None
        assert self.prior is not None
        latent = _masked(torch.tanh(self.latent(h)), masks.get("latent"))
        logits = _wide(self._decode(latent.unflatten(-1, (self.num_experts, -1))))
        weights = functional.log_softmax(_wide(self.prior(h)), dim=-1) - logits.logsumexp(dim=-1)
        return (logits + weights.unsqueeze(-1)).logsumexp(dim=-2)

    def _penalty(self, raw: Tensor, dropped: Tensor) -> Tensor | None:
        parts = []
        if self.activation_penalty > 0:
            parts.append(self.activation_penalty * _wide(dropped).square().mean())
        if self.temporal_penalty > 0 and len(raw) > 1:
            parts.append(self.temporal_penalty * _wide(raw).diff(dim=0).square().mean())
        return torch.stack(parts).sum() if parts else None


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
