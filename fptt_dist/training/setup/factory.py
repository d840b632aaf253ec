"""Build the objects of a run from its configuration, one `match` each."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import torch
from torch import Tensor, nn

from fptt_dist import config as settings
from fptt_dist.algorithm import FPTT, SCHEMES, schedules
from fptt_dist.algorithm.averaging import NonMonotonicTrigger, WeightAverage
from fptt_dist.algorithm.fused.kernel import refusal
from fptt_dist.config import Config, ConfigError, missing_object, short_name
from fptt_dist.models import (
    AwdLstm,
    Network,
    Sizes,
    UserNetwork,
    check_module,
    chrono_init,
    make_layer,
    make_network,
    recurrent_layer,
)
from fptt_dist.parallel import Weights
from fptt_dist.tasks import Task, TaskShape
from fptt_dist.user_code import UserCodeError, load_class

LOG = logging.getLogger("fptt_dist")


def build_model(config: Config, shape: TaskShape, network: nn.Module | None = None) -> Network | AwdLstm | UserNetwork:
    """Return the network, initialized from the run's seed: the same on every worker.

    Args:
        config: the run's.
        shape: sizes of the task.
        network: the object that model.network=python:CLASS names, as it is.

    Raises:
        ConfigError: chrono initialization for a sequence that is too short, or a user's layer or network that cannot be
            trained.
    """
    model = config.model
    own = model.user_class if isinstance(model, settings.UserLayer | settings.WholeNetwork) else None
    try:
        kind = None if own is None else load_class(own.file, own.name, nn.Module)
        torch.manual_seed(config.seed)
        if isinstance(model, settings.WholeNetwork):
            return _users_network(model, shape, kind, network)
        return _network(config, shape, kind)
    except UserCodeError as error:
        is_network = isinstance(model, settings.WholeNetwork)
        name = f"model.network={model.network}" if is_network else f"model.layer={model.layer}"
        raise ConfigError(f"{name}: {error}") from error


def _users_network(
    model: settings.WholeNetwork, shape: TaskShape, own: type[nn.Module] | None, given: nn.Module | None
) -> UserNetwork:
    """Return a user's network: of the class `own`, or the object that was given."""
    inputs, is_text = shape.vocabulary_size or shape.inputs, shape.vocabulary_size is not None
    if own is not None:
        network = make_network(own, inputs, shape.outputs, model.options, is_text=is_text)
    elif given is None:
        raise missing_object("network", short_name(model.network))
    else:
        check_module(given, Sizes(inputs, shape.outputs, "outputs", is_text))
        network = given
    return UserNetwork(network, output_steps=shape.output_steps)


@contextmanager
def exit_refused(config: Config) -> Iterator[None]:
    """Make an error of a SystemExit of a user's file within the context: it would end a run halfway, with code 0.

    Any other is left alone: Ray ends its actors by one.

    Raises:
        ConfigError: a user's layer, network or task raised SystemExit.
    """
    try:
        yield
    except SystemExit as left:
        files = {Path(frame.f_code.co_filename).resolve() for frame, _ in walk_tb(left.__traceback__)}
        own = next((each for each in config.user_classes if each.file.resolve() in files), None)
        if own is None:
            raise
        raise ConfigError(
            f"{own.key}={own}: it ended the program (SystemExit: {left.code}): let it raise an error of another type"
        ) from left


def _network(config: Config, shape: TaskShape, own: type[nn.Module] | None) -> Network | AwdLstm:
    """Return the network; `own` is the class of a user's layer."""
    model = config.model
    assert not isinstance(model, settings.WholeNetwork)
    if isinstance(model, settings.AwdLSTM):
        assert shape.vocabulary_size is not None
        return AwdLstm(shape.vocabulary_size, **model.model_dump(exclude={"layer", *settings.Pretrained.model_fields}))
    inputs = shape.inputs if shape.vocabulary_size is None else model.embedding or model.hidden
    if isinstance(model, settings.UserLayer):
        assert own is not None
        layer = make_layer(own, inputs, model.hidden, model.options)
    else:
        more = model.layer_arguments(shape.length)
        layer = recurrent_layer(model.layer, inputs, model.hidden, layers=model.layers, dropout=model.dropout, **more)
    if isinstance(model, settings.ChronoStack) and model.init == "chrono":
        if shape.length < 3:
            raise ConfigError(
                f"model.init=chrono needs at least 3 steps, not task.length={shape.length}: type a longer "
                "task.length, or model.init=default"
            )
        chrono_init(layer, shape.length)
    return Network(
        layer,
        model.hidden,
        shape.outputs,
        output_steps=shape.output_steps,
        symbols=shape.vocabulary_size,
        embedding=None if shape.vocabulary_size is None else inputs,
        dropout=model.dropout,
        output_dropout=model.output_dropout,
    )


def build_optimizer(config: Config, parameters: list[Tensor]) -> FPTT:
    """Return FPTT around the base optimizer.

    The baselines are FPTT with α = 0, which is the base optimizer bit for bit (up to rounding where
    train.compile_update fuses the update).
    """
    base = _base_optimizer(config.optimizer, parameters)
    fptt = config.fptt
    has_regularizer = SCHEMES[config.algorithm].has_regularizer
    fused = config.train.compile_update and _can_be_fused(base, fptt.update_rule if has_regularizer else "gradient")
    if not has_regularizer:
        return FPTT(base, alpha=0.0, max_norm=config.train.max_norm, fused=fused)
    return FPTT(
        base,
        alpha=fptt.alpha,
        beta=fptt.beta,
        dual_weight=fptt.dual_weight,
        prox_weight=fptt.prox_weight,
        update_rule=fptt.update_rule,
        metric=fptt.metric,
        max_norm=config.train.max_norm,
        clip_scope=fptt.clip_scope,
        fused=fused,
    )


def _can_be_fused(base: torch.optim.Optimizer, update: str) -> bool:
    """Return whether the update can be compiled; warn of the reason if not."""
    problem = refusal(base, update)
    if problem is not None:
        LOG.warning("train.compile_update=true leaves the update as it is: %s", problem)
    return problem is None


def weights_to_evaluate(config: Config) -> Weights:
    """Return W̄ where there is a regularizer, else W, unless `evaluate.weights` says which.

    A started average of the weights comes before both, unless the key says which.
    """
    regularized = SCHEMES[config.algorithm].has_regularizer and config.fptt.alpha > 0.0
    chosen = config.evaluate.weights
    return ("center" if regularized else "weights") if chosen == "auto" else chosen


def build_average(
    config: Config, optimizer: FPTT, task: Task
) -> tuple[WeightAverage, NonMonotonicTrigger] | tuple[None, None]:
    """Return the average of the weights and the trigger that starts it, for optimizer.name=nt_asgd; else None twice."""
    if not isinstance(config.optimizer, settings.NtAsgd):
        return None, None
    trigger = NonMonotonicTrigger(config.optimizer.patience, higher_is_better=task.higher_is_better)
    return WeightAverage(optimizer), trigger


def _base_optimizer(
    optimizer: settings.SGD | settings.Adam | settings.AdamW | settings.RMSprop | settings.NtAsgd,
    parameters: list[Tensor],
) -> torch.optim.Optimizer:
    match optimizer:
        case settings.SGD() as sgd:
            return torch.optim.SGD(
                parameters,
                lr=sgd.lr,
                momentum=sgd.momentum,
                nesterov=sgd.nesterov,
                weight_decay=sgd.weight_decay,
                foreach=True,
            )
        case settings.NtAsgd() as sgd:
            return torch.optim.SGD(parameters, lr=sgd.lr, weight_decay=sgd.weight_decay, foreach=True)
        case settings.Adam() | settings.AdamW() as adam:
            kind = torch.optim.AdamW if isinstance(adam, settings.AdamW) else torch.optim.Adam
            return kind(
                parameters,
                lr=adam.lr,
                betas=adam.betas,
                eps=adam.eps,
                weight_decay=adam.weight_decay,
                amsgrad=adam.amsgrad,
                foreach=True,
            )
        case settings.RMSprop() as rmsprop:
            return torch.optim.RMSprop(
                parameters,
                lr=rmsprop.lr,
                alpha=rmsprop.decay,
                eps=rmsprop.eps,
                momentum=rmsprop.momentum,
                weight_decay=rmsprop.weight_decay,
                foreach=True,
            )


def build_alpha_schedule(config: Config) -> schedules.AlphaSchedule:
    """Return the schedule of α; 0 for the baselines."""
    if not SCHEMES[config.algorithm].has_regularizer:
        return schedules.constant(0.0)
    alpha = config.fptt.alpha
    match config.fptt.schedule:
        case settings.ConstantAlpha():
            return schedules.constant(alpha)
        case settings.LinearAlpha(start=start):
            return schedules.linear(alpha, start)
        case settings.CosineAlpha(start=start):
            return schedules.cosine(alpha, start)
        case settings.InverseLrAlpha(maximum=maximum):
            return schedules.inverse_lr(alpha, maximum)
