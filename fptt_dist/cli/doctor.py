"""The subcommand `doctor`: what this installation can do."""

import os
import platform
import re
from importlib import metadata

from fptt_dist.cli.tables import print_rows
from fptt_dist.version import __version__

PACKAGE = "fptt-dist"


def doctor() -> None:
    """Show what this installation can do: versions, devices, backends, missing extras."""
    print_rows((), diagnosis())


def diagnosis() -> list[tuple[str, str]]:
    """Return pairs of an item and what was found of it."""
    import torch

    rows = [
        ("fptt_dist", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("processor", f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} thread(s)"),
        *((name, _version(name)) for name in _requirements(extra=None)),
        ("CUDA", _cuda()),
        ("cuDNN", str(torch.backends.cudnn.version()) if torch.backends.cudnn.is_available() else "none"),
        ("process group backends", ", ".join(_backends()) or "none"),
        ("data", os.path.abspath("data") if os.path.isdir("data") else "no folder data/ here"),
    ]
    for extra in _extras():
        missing = [name for name in _requirements(extra) if _version(name) == "missing"]
        install = f"missing {', '.join(missing)}: pip install -e '.[{extra}]'"
        rows.append((f"extra {extra}", install if missing else "complete"))
    return rows


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "none" if built is None else f"torch is built for CUDA {built}, but no usable GPU was found"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}: {', '.join(names)}"


def _backends() -> list[str]:
    import torch.distributed as dist

    if not dist.is_available():
        return []
    found = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    return [name for name, available in found.items() if available]


def _extras() -> list[str]:
    return metadata.metadata(PACKAGE).get_all("Provides-Extra") or []


def _requirements(extra: str | None) -> list[str]:
    """Distributions that this package, or one of its extras, asks for."""
    names = []
    for line in metadata.requires(PACKAGE) or []:
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if (marker.group(1) if marker else None) == extra:
            names.append(re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0])
    return names


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
