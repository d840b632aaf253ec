"""A table of the paper's, read back from the Markdown that `paper_table` and `grid_table` write."""

from dataclasses import dataclass
from pathlib import Path

BEGINS = ("| row | paper | ours |", "| cell | parameters |")
RULE = "| --- |"


@dataclass(frozen=True)
class WrittenTable:
    """What a file of `fptt-dist reproduce` says.

    Attributes:
        name: the target's, such as table4.
        title: what stands above it.
        unit: what its figures are.
        columns: their names.
        rows: the cells; a row with one cell is a heading of those after it.
        notes: what stands below it; the first is the command that makes it again.
        picture: the file of its picture; None where there is none.
        numbers: from which column on they are numbers.
    """

    name: str
    title: str
    unit: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    picture: Path | None
    numbers: int = 1


def is_paper_table(path: Path) -> bool:
    """Whether a Markdown file is one of `fptt-dist reproduce`'s tables."""
    lines = path.read_text(errors="replace").splitlines()
    return bool(lines) and lines[0].startswith("# ") and any(line.startswith(BEGINS) for line in lines)


def read_paper_table(path: Path) -> WrittenTable:
    """Read a file of which `is_paper_table` holds."""
    lines = path.read_text(errors="replace").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(BEGINS))
    table = [line for line in lines[start:] if line.startswith("| ") and not line.startswith(RULE)]
    cells = [_cells(line) for line in table]
    picture = path.parent / "figures" / f"{path.stem}.png"
    return WrittenTable(
        name=path.stem,
        title=lines[0].removeprefix("# "),
        unit=" ".join(line for line in lines[1:start] if line),
        columns=cells[0],
        rows=[[each[0].strip("*")] if _is_heading(each) else each for each in cells[1:]],
        notes=[line.removeprefix("- ").strip("`") for line in lines[start:] if line.startswith("- ")],
        picture=picture if picture.is_file() else None,
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]


def _is_heading(cells: list[str]) -> bool:
    return cells[0].startswith("**") and not any(cells[1:])
