"""A class of the user's: in a file, which a key names as PATH.py:CLASS, or of an object that `fit` was given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fptt_dist.config.schema.paths import LocalPath

ANY = "PATH.py:CLASS"
"""Name of the variant that a class of the user's chooses."""
GIVEN = "python:"
"""Begins the value of a key for which `fptt_dist.fit` was given an object: the name of its class follows."""
GIVEN_CLASS = f"{GIVEN}CLASS"
GivenClass = Annotated[str, Field(pattern=rf"^{GIVEN}[^\W\d]\w*$")]
ClassPath = Annotated[LocalPath, Field(pattern=r"^.+\.py:[A-Za-z_]\w*$")]
NetworkClass = Annotated[LocalPath, Field(pattern=rf"^(.+\.py:[A-Za-z_]|{GIVEN}[^\W\d])\w*$")]


@dataclass(frozen=True)
class UserClass:
    """A class of the user's.

    Attributes:
        key: the dotted key that names it.
        file: path of the file that defines it.
        name: of the class.
    """

    key: str
    file: Path
    name: str

    @classmethod
    def of(cls, key: str, value: str) -> "UserClass":
        """Return the class that a key's value names."""
        file, _, name = value.rpartition(":")
        return cls(key, Path(file), name)

    def absolute(self) -> "UserClass":
        """Return the same class, with the absolute path of its file."""
        return UserClass(self.key, self.file.absolute(), self.name)

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"


def short_name(value: str) -> str:
    """Return a class's name for folders and titles; the value of a key that names none as it is."""
    return value.rpartition(".py:")[2].removeprefix(GIVEN)
