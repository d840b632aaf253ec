"""The figures of a report, as files beside the page and embedded in it."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from fptt_dist.files import write_atomic

LARGEST = 300_000
"""Size of an SVG in bytes above which the page embeds the PNG instead."""
PIXELS = 96  # of the page per inch of a figure


@dataclass(frozen=True)
class Shown:
    """A figure as the page shows it.

    Attributes:
        name: of its files, without suffix.
        title: its title.
        caption: the text below it.
        source: the complete image as a data URL.
        width: on the page, in pixels; None where it is not known.
        files: names of its files beside the page, for the links.
    """

    name: str
    title: str
    caption: str
    source: str
    width: int | None
    files: list[str]


def show_figure(figure: Figure, name: str, title: str, caption: str, folder: Path) -> Shown:
    """Write `figure` into `folder` as `name`.png and `name`.svg, and return it as the page shows it.

    Raises:
        OSError: it could not be written.
    """
    stem = re.sub(r"[^\w.-]+", "-", name)
    drawn: dict[str, bytes] = {}
    with rc_context({"svg.hashsalt": name}):  # the same figure gives the same file
        for kind in ("svg", "png"):
            memory = io.BytesIO()
            figure.savefig(memory, format=kind, metadata={"Date": None} if kind == "svg" else None)
            drawn[kind] = memory.getvalue()
            write_atomic(folder / f"{stem}.{kind}", drawn[kind], parents=True)
    small = len(drawn["svg"]) <= LARGEST
    return Shown(
        name=stem,
        title=title,
        caption=caption,
        source=data_url(*(("image/svg+xml", drawn["svg"]) if small else ("image/png", drawn["png"]))),
        width=round(figure.get_figwidth() * PIXELS),
        files=[f"{folder.name}/{stem}.{kind}" for kind in ("png", "svg")],
    )


def data_url(kind: str, content: bytes) -> str:
    """Return `content` as a data URL, so that the page loads nothing."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
