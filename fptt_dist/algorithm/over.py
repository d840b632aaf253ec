"""Classes that make an FPTT optimizer from parameters, for programs that construct the optimizer themselves."""

import copyreg
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer


class _Over(type):
    """A class that `over` made: pickled by what it was made of, since no module has it under its name."""

    made_of: tuple[type, type[Optimizer], dict[str, Any]]


def over(fptt: Any, base: Any, options: Mapping[str, Any]) -> type[Any]:
    """Return a class whose instances are `fptt(base(params, **kwargs), **options)`; see `FPTT.over`.

    Raises:
        TypeError: `base` is no class of optimizers, or an option is missing or unknown.
    """
    if not (isinstance(base, type) and issubclass(base, Optimizer)):
        given_type = base.__name__ if isinstance(base, type) else f"an object of type {type(base).__name__}"
        raise TypeError(f"base must be a class of optimizers, such as torch.optim.Adam, not {given_type}")
    if issubclass(base, fptt):
        raise TypeError(f"base={base.__name__} is FPTT already: one is enough")
    given = dict(options)
    arguments = inspect.signature(fptt.__init__)
    try:
        arguments.bind(None, base, **given)
    except TypeError as error:
        allowed = ", ".join(list(arguments.parameters)[2:])
        raise TypeError(f"over({base.__name__}, …): {error}; the options are {allowed}") from None

    def init(self: Any, params: Any, **kwargs: Any) -> None:
        fptt.__init__(self, base(params, **kwargs), **given)

    # Lightning's command line and others read the arguments of the base from here.
    init.__signature__ = inspect.signature(base.__init__)  # type: ignore[attr-defined]
    init.__doc__ = base.__init__.__doc__
    spelled = ", ".join(f"{name}={value!r}" for name, value in given.items())
    text = f"`{fptt.__name__}({base.__name__}(params, …), {spelled})`; the arguments are those of `{base.__name__}`."
    made = _Over(
        f"{fptt.__name__}{base.__name__}", (fptt,), {"__init__": init, "__doc__": text, "__module__": __name__}
    )
    made.made_of = (fptt, base, given)
    return made


def _reduce(made: _Over) -> tuple[Callable[..., type], tuple[Any, ...]]:
    return over, made.made_of


copyreg.pickle(_Over, _reduce)  # type: ignore[arg-type]  # classes are objects, too
