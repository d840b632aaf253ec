"""A class or function from a file of the user's: how it is found and loaded, and what is said of its errors."""

import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_OTHERS = (str(Path(__file__).parent), sysconfig.get_path("stdlib"))
_INSTALLED = {"site-packages", "dist-packages"}


class UserCodeError(ValueError):
    """A problem with a user's class; the message says what to do."""


def load_class(file: Path, name: str, base: type[T], *, otherwise: str = "") -> type[T]:
    """Return the class of that name in a Python file, which may import its neighbors.

    Args:
        file: path of the file.
        name: of the class.
        base: what the class derives from.
        otherwise: end of the message where it is not derived from `base`.

    Raises:
        UserCodeError: there is no such file or class, it is not derived from `base`, or the file cannot be run.
    """
    defined = _run(file, name)
    found = defined.get(name)
    if found is None:
        own = [key for key, value in defined.items() if _is(value, base) and value.__module__ == defined["__name__"]]
        raise UserCodeError(
            f"{file} has no {name}; its classes derived from {_name_of(base)}: {', '.join(own) or 'none'}"
        )
    if not _is(found, base):
        raise UserCodeError(f"{name} of {file} is no class derived from {_name_of(base)}{otherwise}")
    return found


def load_callable(file: Path, name: str) -> Callable[..., Any]:
    """Return the class or function of that name in a Python file, which may import its neighbors.

    Raises:
        UserCodeError: there is no such file, class or function, or the file cannot be run.
    """
    defined = _run(file, name)
    found = defined.get(name)
    if not callable(found):
        own = [key for key, each in defined.items() if callable(each) and each.__module__ == defined["__name__"]]
        raise UserCodeError(f"{file} has no class or function {name}; it has {', '.join(own) or 'none'}")
    return found


def _run(file: Path, name: str) -> dict[str, Any]:
    """Run a Python file, in which `name` is looked for, and return what it defines."""
    if not file.is_file():
        raise UserCodeError(f"there is no file {file}: type the path of the file that defines {name}")
    spec = importlib.util.spec_from_file_location(f"user_code_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: what the file defines may look itself up
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{file} cannot be run: {said(error)}") from error
    return vars(module)


def said(error: BaseException) -> str:
    """Return the error in one line, with the user's line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_users(frame.filename)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _is(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _is_users(file: str) -> bool:
    """Return whether a traceback's file is neither this package's, nor Python's, nor that of an installed one."""
    return file.endswith(".py") and not file.startswith(_OTHERS) and not _INSTALLED & set(Path(file).parts)


def _name_of(base: type) -> str:
    """Return the name by which a user imports a class: the shortest, without the file that defines it."""
    package, *inner = base.__module__.split(".")
    short = getattr(sys.modules[package], base.__name__, None) is base
    return ".".join([package, *([] if short else inner[:1]), base.__name__])
