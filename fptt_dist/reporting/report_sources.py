"""What the folders given to a report hold: runs, sweeps, and tables of the paper."""

import os
from dataclasses import dataclass
from pathlib import Path

from fptt_dist.config import ConfigError
from fptt_dist.reporting.report_paper import is_paper_table
from fptt_dist.reporting.sweep import TRIAL, is_sweep

RUN = "config.yaml"
"""What makes a folder a run's."""


@dataclass(frozen=True)
class Sources:
    """What was found, each once, in the order of the folders that were named.

    Attributes:
        runs: the runs' folders, those of sweeps and of the paper's rows among them.
        sweeps: the sweeps' folders.
        papers: the Markdown tables that `fptt-dist reproduce` wrote.
    """

    runs: list[Path]
    sweeps: list[Path]
    papers: list[Path]

    @property
    def alone(self) -> list[Path]:
        """The runs that belong to no sweep among `sweeps`."""
        folders = {sweep.resolve() for sweep in self.sweeps}
        return [run for run in self.runs if run.resolve().parent not in folders]


def find_sources(folders: list[Path]) -> Sources:
    """Look through the folders: each is a run's, a sweep's, or one with any of these below it.

    Raises:
        ConfigError: a folder that is not there, or without any run.
    """
    runs: dict[Path, Path] = {}
    sweeps: dict[Path, Path] = {}
    papers: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            problem = "is a file, not a folder" if folder.exists() else "is not there"
            raise ConfigError(f"{folder} {problem}: type fptt-dist report RUN…, the folders of runs")
        found = _below(folder)
        if not (found.runs or found.sweeps):
            raise ConfigError(
                f"{folder} holds no run: neither it nor a folder below it has a {RUN}; "
                "fptt-dist jobs FOLDER lists the runs below a folder"
            )
        for known, new in ((runs, found.runs), (sweeps, found.sweeps), (papers, found.papers)):
            for path in new:
                known.setdefault(path.resolve(), path)
    return Sources(list(runs.values()), list(sweeps.values()), list(papers.values()))


def _below(folder: Path) -> Sources:
    """What `folder` is or holds; nothing is sought within a run, nor in hidden folders."""
    found = Sources([], [], [])
    for name, inside, files in os.walk(folder):
        path = Path(name)
        if RUN in files:
            found.runs.append(path)
            inside.clear()
            continue
        if is_sweep(path):
            found.sweeps.append(path)
            inside[:] = [each for each in inside if (path / each / TRIAL).is_file()]
        found.papers.extend(
            path / each for each in sorted(files) if each.endswith(".md") and is_paper_table(path / each)
        )
        inside[:] = sorted(each for each in inside if not each.startswith("."))
    return found
