"""Build a run's task from its configuration."""

import sys
from pathlib import Path

from fptt_dist import config as settings
from fptt_dist.config import Config, ConfigError, missing_object, short_name
from fptt_dist.tasks import Adding, Arrays, Copying, DatasetTask, Language, Pixels, Task, check_task, make_task
from fptt_dist.tasks.data.series import RawSeries, read_arrays
from fptt_dist.tasks.data.tables import read_table
from fptt_dist.tasks.series_task import PER_STEP
from fptt_dist.training.setup.seeds import own_streams
from fptt_dist.training.vocabulary import read_vocabulary
from fptt_dist.user_code import UserCodeError, load_callable, load_class


def build_task(config: Config) -> Task:
    """Return the task, with the run's seed, and of a run on a text the vocabulary that its folder keeps.

    Raises:
        ConfigError: a user's task that cannot be trained, or one that was an object of a program.
        DataError: a mistake in the data.
    """
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
            return _pixels(config, task)
        case settings.LanguageTask() as task:
            return _language(config, task)
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
        case settings.ArraysTask() as task:
            return _arrays(config, task)
        case settings.UserTask() as task:
            return _users(config, task)
        case settings.GivenTask() as task:
            raise missing_object("task", short_name(task.name))


def _pixels(config: Config, task: settings.PixelsTask) -> Pixels:
    return Pixels(
        root=Path(config.data.root),
        dataset=task.dataset,
        pixels_per_step=task.pixels_per_step,
        permutation=task.permutation,
        validation=task.validation,
        examples=task.examples,
        test=task.test,
        augmentation=task.augmentation,
        target_estimate=task.target_estimate,
        loss_steps=task.loss_steps,
        kl_reduction=task.kl_reduction,
        windows=config.windows_run,
        seed=config.seed,
    )


def _language(config: Config, task: settings.LanguageTask) -> Language:
    return Language(
        root=Path(config.data.root),
        text_dir=None if task.text_dir is None else Path(task.text_dir),
        token_level=task.token_level,
        min_count=task.min_count,
        vocabulary=None if config.run.dir is None else read_vocabulary(Path(config.run.dir)),
        length=task.length,
        length_std=task.length_std,
        streams=config.train.batch_size,
        windows=config.windows,
        train_tokens=task.train_tokens,
        eval_tokens=task.eval_tokens,
        seed=config.seed,
    )


def _series(file: Path, task: settings.ArraysTask) -> RawSeries:
    """Return the series of one file of task.name=arrays."""
    forecast, per_step = task.target == "forecast", task.target in PER_STEP
    if not task.is_table:
        return read_arrays(file, targets=not forecast, per_step=per_step)
    return read_table(
        file,
        series=task.series_column,
        time=task.time_column,
        targets=() if forecast else task.target_columns or ("target",),
        features=task.feature_columns,
        split=task.split_column,
        per_step=per_step,
    )


def _arrays(config: Config, task: settings.ArraysTask) -> Arrays:
    forecast = task.target == "forecast"
    named = {"train": task.train, "validation": task.validation, "test": task.test}
    return Arrays(
        files={part: None if file is None else _series(Path(file), task) for part, file in named.items()},
        target=task.target,
        length=task.length,
        horizon=task.horizon,
        channels=task.target_columns if forecast else None,
        shares={"validation": task.validation_share, "test": task.test_share},
        split_seed=task.split_seed,
        missing=task.missing,
        standardize=task.standardize,
        class_weights=task.class_weights,
        target_estimate=task.target_estimate,
        bucketing=task.bucketing,
        metrics=task.metrics or (),
        monitor=task.monitor,
        windows=config.windows_run,
        seed=config.seed,
    )


def _users(config: Config, task: settings.UserTask) -> Task:
    """Return a user's task, or the task on a user's Dataset.

    What they draw from the global streams meanwhile is the same at every start.
    """
    own = task.user_class
    try:
        with own_streams(config.seed):
            built = _on_dataset(config, task) if task.target else _own_task(config, task)
    except UserCodeError as error:
        raise ConfigError(f"{own.key}={own}: {error}") from error
    _check_model(config, built)
    return built


def given_task(config: Config, task: Task) -> Task:
    """Return a task that `fptt_dist.fit` was given, after trying it out.

    Raises:
        ConfigError: it cannot be trained.
    """
    workers, kind = config.data.workers, type(task)
    if workers and kind.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ConfigError(
            f"data.workers={workers}: {kind.__name__} is defined in a notebook, where a data worker process does not "
            "find it: import it from a file, or type data.workers=0"
        )
    try:
        with own_streams(config.seed):  # what it draws from the global streams is the same at every start
            check_task(task, length=config.task.sequence_length, batch_size=config.train.batch_size)
    except UserCodeError as error:
        raise ConfigError(f"task.name={config.task.name}: {error}") from error
    _check_model(config, task)
    return task


def _check_model(config: Config, task: Task) -> None:
    """Refuse a model that reads symbols, for a user's task that has none."""
    name = f"task.name={config.task.name}"
    if task.vocabulary_size is None and isinstance(config.model, settings.AwdLSTM):
        raise ConfigError(
            f"model.layer=awd_lstm is a language model, and {name} has no vocabulary_size: type model.layer=lstm"
        )
    embedding = None if isinstance(config.model, settings.WholeNetwork) else config.model.embedding
    if task.vocabulary_size is None and embedding is not None:
        raise ConfigError(
            f"model.embedding={embedding} is for words or characters, and {name} has no "
            "vocabulary_size: type model.embedding=null"
        )


def _own_task(config: Config, task: settings.UserTask) -> Task:
    own = task.user_class
    hint = (
        "; of a Dataset, say what its targets are: type task.target=class, or labels, value, step_class or step_value"
    )
    return make_task(
        load_class(own.file, own.name, Task, otherwise=hint),
        task.options,
        seed=config.seed,
        length=task.length,
        batch_size=config.train.batch_size,
    )


def _on_dataset(config: Config, task: settings.UserTask) -> DatasetTask:
    own = task.user_class
    make = load_callable(own.file, own.name)
    if isinstance(make, type) and issubclass(make, Task):
        raise UserCodeError(f"it is a Task, whose loss says what its targets are: leave task.target={task.target} out")
    assert task.target is not None
    return DatasetTask(
        make,
        task.options,
        name=own.name,
        file=own.file,
        target=task.target,
        length=task.length,
        metrics=task.metrics or (),
        monitor=task.monitor,
        seed=config.seed,
    )
