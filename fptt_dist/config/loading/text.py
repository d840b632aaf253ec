"""Text of a file of settings: a regular file of a size that a person could have written."""

import stat
from pathlib import Path

from fptt_dist.config.errors import ConfigError

MAX_BYTES = 2**18
"""Of one file; reading YAML takes about 40 µs per byte."""


def read_settings(path: Path) -> str:
    """Return the text of a file of settings, without a byte order mark.

    Raises:
        ConfigError: it is a folder, a device or a pipe, which may have no end, too large, not UTF-8, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            own = path / "config.yaml"
            hint = f": type {own}, the configuration of the run in it" if own.is_file() else ""
            raise ConfigError(f"{path}: is a folder, not a file{hint}")
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: is a device or a pipe, not a regular file: type the path of a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(
                f"{path}: is larger than {MAX_BYTES // 1024} KiB, so it is no file of settings: type the path of one"
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
