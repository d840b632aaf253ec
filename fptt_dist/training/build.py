"""From a configuration to the objects of a run: one `match` each."""

import logging
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fptt_dist import config as settings
from fptt_dist.algorithm import FPTT, PROCEDURES, schedules
from fptt_dist.algorithm.averaging import NonMonotonicTrigger, WeightAverage
from fptt_dist.algorithm.kernel import refusal
from fptt_dist.config import Config, ConfigError
from fptt_dist.models import (
    AwdLstm,
    CellError,
    Network,
    chrono_initialisation,
    load_class,
    make_cell,
    recurrent_layer,
)
from fptt_dist.parallel import LaunchEnvironment, device_index
from fptt_dist.tasks import Adding, Copying, Language, Pixels, Task

LOG = logging.getLogger("fptt_dist")


def build_device(config: Config, environment: LaunchEnvironment) -> torch.device:
    """Where this process computes.

    Raises:
        ConfigError: device=cuda without a usable GPU, or more processes on the machine than GPUs.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch finds no usable GPU: type device=cpu, or install a CUDA build of torch"
        )
    device = torch.device("cuda", device_index(environment, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def build_task(config: Config) -> Task:
    """The task, with the run's seed."""
    match config.task:
        case settings.AddingTask() as task:
            return Adding(
                length=task.length,
                markers=task.markers,
                examples=task.examples,
                validation=task.validation,
                test=task.test,
                seed=config.seed,
            )
        case settings.PixelsTask() as task:
            return Pixels(
                root=Path(config.data.root),
                dataset=task.dataset,
                pixels_per_step=task.pixels_per_step,
                permutation=task.permutation,
                validation=task.validation,
                examples=task.examples,
                test=task.test,
                augmentation=task.augmentation,
                estimate=task.estimate,
                reads=task.reads,
                divergence=task.divergence,
                windows=config.windows_run,
                seed=config.seed,
            )
        case settings.LanguageTask() as task:
            return Language(
                root=Path(config.data.root),
                text=None if task.text is None else Path(task.text),
                units=task.units,
                length=task.length,
                deviation=task.deviation,
                streams=config.train.batch_size,
                windows=config.windows,
                tokens=task.tokens,
                held_out=task.held_out,
                seed=config.seed,
            )
        case settings.CopyingTask() as task:
            return Copying(
                delay=task.delay,
                symbols=task.symbols,
                alphabet=task.alphabet,
                examples=task.examples,
                validation=task.validation,
                test=task.test,
                seed=config.seed,
            )


def build_model(config: Config, task: Task) -> Network | AwdLstm:
    """The network, initialised from the run's seed: the same on every worker.

    Raises:
        ConfigError: chrono initialisation for a sequence too short, or a cell of the user's that cannot be trained.
    """
    model = config.model
    try:
        kind = load_class(model.file, model.name) if isinstance(model, settings.OwnCell) else None
        torch.manual_seed(config.seed)
        return _network(config, task, kind)
    except CellError as error:
        raise ConfigError(f"model.cell={model.cell}: {error}") from error


def _network(config: Config, task: Task, own: type[nn.Module] | None) -> Network | AwdLstm:
    """The network; `own` is the class of a cell of the user's."""
    model = config.model
    if isinstance(model, settings.AwdLSTM):
        assert task.vocabulary_size is not None
        return AwdLstm(task.vocabulary_size, **model.model_dump(exclude={"cell"}))
    inputs = task.inputs if task.vocabulary_size is None else model.embedding or model.hidden
    if isinstance(model, settings.OwnCell):
        assert own is not None
        layer = make_cell(own, inputs, model.hidden)
    else:
        more = model.model_dump(exclude=set(settings.OneStack.model_fields) | {"cell", "initialisation"})
        if isinstance(model, settings.IndRNN):
            more["length"] = task.length
        layer = recurrent_layer(model.cell, inputs, model.hidden, layers=model.layers, dropout=model.dropout, **more)
    match model:
        case settings.LSTM(initialisation="chrono") | settings.GRU(initialisation="chrono"):
            if task.length < 3:
                raise ConfigError(
                    f"model.initialisation=chrono needs at least 3 steps, not task.length={task.length}: type a longer "
                    "task.length, or model.initialisation=default"
                )
            chrono_initialisation(layer, task.length)
    return Network(
        layer,
        model.hidden,
        task.outputs,
        reads=task.loss.reads,
        symbols=task.vocabulary_size,
        embedding=None if task.vocabulary_size is None else inputs,
        dropout=model.dropout,
        logit_dropout=model.logit_dropout,
    )


def build_optimizer(config: Config, parameters: list[Tensor]) -> FPTT:
    """FPTT around the base optimizer; the baselines are FPTT with α = 0, which is the base optimizer bit for bit (to
    rounding where train.compile fuses the update)."""
    base = _base_optimizer(config.optimizer, parameters)
    fptt = config.fptt
    has_force = PROCEDURES[config.algorithm].has_force
    fused = config.train.compile and _can_be_fused(base, fptt.update if has_force else "explicit")
    if not has_force:
        return FPTT(base, alpha=0.0, max_norm=config.train.max_norm, fused=fused)
    return FPTT(
        base,
        alpha=fptt.alpha,
        beta=fptt.beta,
        dual_weight=fptt.dual_weight,
        prox_weight=fptt.prox_weight,
        update=fptt.update,
        metric=fptt.metric,
        max_norm=config.train.max_norm,
        clip=fptt.clip,
        fused=fused,
    )


def _can_be_fused(base: torch.optim.Optimizer, update: str) -> bool:
    """Whether the update can be compiled; says why not."""
    problem = refusal(base, update)
    if problem is not None:
        LOG.warning("train.compile=true leaves the update as it is: %s", problem)
    return problem is None


def build_average(
    config: Config, optimizer: FPTT, task: Task
) -> tuple[WeightAverage, NonMonotonicTrigger] | tuple[None, None]:
    """What averages the weights and what says when to begin, for optimizer.name=nt_asgd."""
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
    """How α moves; 0 for the baselines."""
    if not PROCEDURES[config.algorithm].has_force:
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


def seed_worker(seed: int, rank: int, *again: int) -> None:
    """Start this worker's own random streams (dropout, a user's cell), which differ by rank.

    `again`: the batch and the number of workers, where a run goes on with another number of them.
    """
    own = int(np.random.SeedSequence([seed, rank, *again]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002 - a user's cell may draw from it
