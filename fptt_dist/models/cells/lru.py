"""Linear recurrent units (Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences").

The recurrence is complex, diagonal and linear; what is not linear stands between the layers. A window is one `scan`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fptt_dist.models.recurrent_stack import RecurrentStack
from fptt_dist.models.scan import scan
from fptt_dist.types import State


class LRU(RecurrentStack):
    """A stack of the paper's residual blocks `(x (S, B, I), state) → (y (S, B, H), state)`, time-major.

        u = LayerNorm(x)
        h' = λ ∘ h + e^γ ∘ (B u),   λ = exp(−e^ν + i e^θ)        complex, H numbers; |λ| < 1 whatever ν and θ are
        v = Re(C h') + d ∘ u
        y = x + p ∘ σ(q),   (p, q) = W GELU(v) + b

    The first block reads x through a linear encoder where I is not H. The state holds the real and the imaginary part
    of h, a tuple of two real tensors (L, B, H). Parameters are real too: `weight_ih_l0` (2H, H) holds B's real rows and
    then its imaginary ones, `weight_ho_l0` (H, 2H) C's real columns and then its imaginary ones.

    Drawn as in the paper's appendix A: λ uniform in area on a ring, with phases in [0, 2π); B ~ N(0, 1/2H),
    C ~ N(0, 1/H), a part each; d ~ N(0, 1); γ = log √(1 − |λ|²), with which h begins with the variance of B u whatever
    |λ| is. W, b and the encoder are drawn as nn.Linear's. The radii's defaults are the paper's for sequential CIFAR-10.

    Unlike the paper's, a block has as many complex numbers of state as units, and layer instead of batch normalization,
    whose running statistics are no parameters. Elements are dropped between blocks, not inside of them.

    Args:
        inputs: I, features per step.
        hidden: H, units per layer.
        layers: L, how many are stacked.
        smallest_radius: smallest |λ| that is drawn.
        largest_radius: largest |λ| that is drawn.
        dropout: probability of dropping an element between layers; without effect on a single one.

    Raises:
        ValueError: radii out of order, or not in [0, 1).
    """

    stepped = False
    options = ("smallest_radius", "largest_radius")

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        smallest_radius: float = 0.9,
        largest_radius: float = 0.999,
        dropout: float = 0.0,
    ) -> None:
        if not 0 <= smallest_radius < largest_radius < 1:
            raise ValueError(
                "eigenvalues are drawn on a ring with 0 <= smallest_radius < largest_radius < 1, not "
                f"smallest_radius={smallest_radius} and largest_radius={largest_radius}"
            )
        super().__init__(inputs, hidden, layers=layers, dropout=dropout)
        self.smallest_radius = smallest_radius
        self.largest_radius = largest_radius
        self.encoder = nn.Linear(inputs, hidden) if inputs != hidden else None
        self.make_parameters()

    def shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """ν, θ, γ, B, C, d, what the normalization scales and adds, W and b: those of the layers above an encoder."""
        n = self.hidden_size
        return {
            "nu": (n,),
            "theta": (n,),
            "gamma": (n,),
            "weight_ih": (2 * n, n),
            "weight_ho": (n, 2 * n),
            "through": (n,),
            "weight_norm": (n,),
            "bias_norm": (n,),
            "weight_glu": (2 * n, n),
            "bias_glu": (2 * n,),
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters as the paper does."""
        if self.encoder is not None:
            self.encoder.reset_parameters()
        deviation, inner, outer = 1 / math.sqrt(self.hidden_size), self.smallest_radius**2, self.largest_radius**2
        for layer in range(self.num_layers):
            nu, theta, gamma, inward, outward, through, scale, shift, weight, bias = self.parameters_of(layer)
            square = inner + (outer - inner) * (1 - torch.rand_like(nu))  # of (0, 1]: no parameter may be infinite
            nu.copy_((-0.5 * square.log()).log())
            theta.copy_((2 * math.pi * (1 - torch.rand_like(theta))).log())
            gamma.copy_(0.5 * (1 - square).log())
            nn.init.normal_(inward, std=deviation / math.sqrt(2))
            nn.init.normal_(outward, std=deviation)
            nn.init.normal_(through)
            nn.init.ones_(scale)
            nn.init.zeros_(shift)
            for parameter in (weight, bias):
                nn.init.uniform_(parameter, -deviation, deviation)

    def initial_state(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Zeros, real and imaginary (B, H)."""
        zeros = super().initial_state(x, dtype)
        return zeros, torch.zeros_like(zeros)

    def eigenvalues(self, layer: int = 0) -> Tensor:
        """λ (H,) of a layer, complex64 at least."""
        nu, theta, *_ = self.parameters_of(layer)
        dtype = torch.promote_types(nu.dtype, torch.float32)
        return torch.polar(torch.exp(-nu.to(dtype).exp()), theta.to(dtype).exp())

    def run_layer(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """See `RecurrentStack`. In the matrices, as in memory, the imaginary part of a number follows its real one."""
        _, _, gamma, inward, outward, through, scale, shift, weight, bias = self.parameters_of(layer)
        n, (real, imaginary) = self.hidden_size, state
        if layer == 0 and self.encoder is not None:
            x = self.encoder(x)
        read = functional.layer_norm(x, (n,), scale, shift)
        rows = (gamma.exp()[:, None] * inward.view(2, n, n)).transpose(0, 1).flatten(0, 1)
        drive = functional.linear(read, rows).to(real.dtype).unflatten(-1, (n, 2))
        if len(x) == 1 and torch.compiler.is_compiling():  # neither ONNX nor the compiler has complex numbers
            h = torch.stack(self._real_step(layer, drive, real, imaginary), dim=-1)
            after = h[-1].unbind(-1)
        else:
            complex_h = scan(self.eigenvalues(layer), torch.view_as_complex(drive), torch.complex(real, imaginary))
            h, after = torch.view_as_real(complex_h), (complex_h[-1].real, complex_h[-1].imag)
        columns = torch.stack((outward[:, :n], -outward[:, n:]), dim=-1).flatten(1)
        seen = functional.linear(h.flatten(-2).to(columns.dtype), columns) + through * read
        mixed = functional.glu(functional.linear(functional.gelu(seen), weight, bias))
        return x + mixed, after

    def _real_step(self, layer: int, drive: Tensor, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """Return λ ∘ h + drive of one step, real and imaginary part (1, B, H), in real arithmetic."""
        nu, theta, *_ = self.parameters_of(layer)
        radius, angle = torch.exp(-nu.to(real.dtype).exp()), theta.to(real.dtype).exp()
        cosine, sine = radius * angle.cos(), radius * angle.sin()
        inward, upward = drive.unbind(-1)
        return cosine * real - sine * imaginary + inward, sine * real + cosine * imaginary + upward
