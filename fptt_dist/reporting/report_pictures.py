"""The pictures of a report: as files beside the page, and within it."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from fptt_dist.reporting.whole import write_whole

LARGEST = 300_000
"""Bytes of an SVG beyond which the page holds the PNG in its place."""
PIXELS = 96  # of the page in one inch of a figure


@dataclass(frozen=True)
class Shown:
    """A picture as the page has it.

    Attributes:
        name: of its files, without the ending.
        title: what it is.
        caption: what stands below it.
        source: the whole picture as a data URL.
        width: on the page, in pixels; None where it is not known.
        files: names of its files beside the page, to be linked.
    """

    name: str
    title: str
    caption: str
    source: str
    width: int | None
    files: list[str]


def show_figure(figure: Figure, name: str, title: str, caption: str, folder: Path) -> Shown:
    """Write `figure` into `folder` as `name`.png and `name`.svg, and give it as the page has it.

    Raises:
        OSError: it could not be written.
    """
    stem = re.sub(r"[^\w.-]+", "-", name)
    drawn: dict[str, bytes] = {}
    with rc_context({"svg.hashsalt": name}):  # the same figure is the same file
        for kind in ("svg", "png"):
            memory = io.BytesIO()
            figure.savefig(memory, format=kind, metadata={"Date": None} if kind == "svg" else None)
            drawn[kind] = memory.getvalue()
            write_whole(folder / f"{stem}.{kind}", drawn[kind])
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
    """`content` within a URL, so that the page loads nothing."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
