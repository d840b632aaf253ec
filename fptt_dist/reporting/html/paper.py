"""Reader of the paper's tables, from the Markdown that `paper_table` and `grid_table` write."""

from dataclasses import dataclass
from pathlib import Path

BEGINS = ("| row | paper | ours |", "| cell | parameters |")
RULE = "| --- |"


@dataclass(frozen=True)
class WrittenTable:
    """A table that `fptt-dist reproduce` wrote.

    Attributes:
        name: the target's, such as table4.
        title: its title.
        unit: the unit of its values.
        columns: their names.
        rows: the cells; a row with one cell is a heading of those after it.
        notes: the notes below it; the first is the command that reproduces it.
        picture: the file of its figure; None where there is none.
        numbers: the first column that holds numbers.
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
    """Return whether a Markdown file is a table written by `fptt-dist reproduce`."""
    lines = path.read_text(errors="replace").splitlines()
    return bool(lines) and lines[0].startswith("# ") and any(line.startswith(BEGINS) for line in lines)


def read_paper_table(path: Path) -> WrittenTable:
    """Read a file for which `is_paper_table` is true."""
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
