"""The optimizers a configuration can name."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fptt_dist.config.schema.section import Conflict, Section, Variants, refuse

_Share = Annotated[float, Field(ge=0, lt=1)]
_Lr = Annotated[float, Field(gt=0, description="learning rate")]
_Momentum = Annotated[float, Field(ge=0, lt=1, description="share of the last step kept in the next")]
_Betas = Annotated[
    tuple[_Share, _Share],
    Field(strict=False, description="decays of the averages of the gradient and of its square, per update"),
]
_Eps = Annotated[float, Field(gt=0, description="added to the denominator, in the gradient's unit")]
_L2 = Annotated[float, Field(ge=0, description="factor of the parameters added to their gradient (L2 penalty)")]
_Amsgrad = Annotated[bool, Field(description="divide by the largest average of the squares so far")]
_NAME = "the optimizer"


class Adam(Section):
    """Adam; weight decay is an L2 penalty added to the gradient."""

    name: Literal["adam"] = Field(default="adam", description=_NAME)
    lr: _Lr = 1e-3
    betas: _Betas = (0.9, 0.999)
    eps: _Eps = 1e-8
    weight_decay: _L2 = 0.0
    amsgrad: _Amsgrad = False


class AdamW(Section):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = Field(default="adamw", description=_NAME)
    lr: _Lr = 1e-3
    betas: _Betas = (0.9, 0.999)
    eps: _Eps = 1e-8
    weight_decay: float = Field(default=0.01, ge=0, description="share of a parameter removed per update, times lr")
    amsgrad: _Amsgrad = False


class SGD(Section):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = Field(default="sgd", description=_NAME)
    lr: _Lr = 0.1
    momentum: _Momentum = 0.0
    nesterov: bool = Field(default=False, description="Nesterov's form of the momentum")
    weight_decay: _L2 = 0.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        """Refuse nesterov without momentum."""
        if self.nesterov and self.momentum == 0:
            text = (
                "optimizer.nesterov=true has no meaning with optimizer.momentum=0.0: "
                "type optimizer.nesterov=false, or a momentum such as optimizer.momentum=0.9"
            )
            refuse([Conflict(text, ("optimizer.nesterov", "optimizer.momentum"))])
        return self


class RMSprop(Section):
    """RMSprop."""

    name: Literal["rmsprop"] = Field(default="rmsprop", description=_NAME)
    lr: _Lr = 1e-3
    decay: float = Field(default=0.99, ge=0, lt=1, description="decay of the average squared gradient per update")
    eps: _Eps = 1e-8
    momentum: _Momentum = 0.0
    weight_decay: _L2 = 0.0


class NtAsgd(Section):
    """Plain SGD until the validation metric has not improved for a while, then the mean of all weights from there on
    (Merity et al. 2018)."""

    name: Literal["nt_asgd"] = Field(default="nt_asgd", description=_NAME)
    lr: _Lr = 30.0
    weight_decay: _L2 = 0.0
    patience: int = Field(
        default=5, ge=1, description="validations: the mean begins when a value is not better than the best before them"
    )


Optimizer = Annotated[Adam | AdamW | SGD | RMSprop | NtAsgd, Variants("name")]
