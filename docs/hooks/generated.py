"""Add the pages of the site that are not files in docs/: the generated reference, and files from elsewhere."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference_api import api_page
from reference_commands import commands_page
from reference_configuration import configuration_page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "slurm/README.md": "slurm.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {"fptt_dist/config/schema": "configuration.md", "fptt_dist": "api.md"}
"""Folders of what the generated pages describe: pages link to them, so that a link works in the repository too."""
REFERENCE = {"configuration.md": configuration_page, "api.md": api_page, "commands.md": commands_page}
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")  # the file that a link names; no links to other sites


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for page, write in REFERENCE.items():
        files.append(File.generated(config, page, content=write()))
    for source, page in ELSEWHERE.items():
        if (ROOT / source).exists():  # where it is missing, mkdocs warns that the navigation names it
            files.append(File.generated(config, page, content=with_moved_links((ROOT / source).read_text(), source)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Replace links from docs/ to files outside it, which are right in the repository, by the site's own."""
    for source, name in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    for folder, name in SOURCES.items():
        markdown = markdown.replace(f"](../{folder})", f"]({name})")
    return markdown


def with_moved_links(text: str, source: str) -> str:
    """Return the Markdown of a file outside docs/ with its links rewritten for the flat layout of the site."""

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target == "README.md":
            return "index.md"
        return ELSEWHERE.get(target, target.removeprefix("docs/"))

    return LINK.sub(moved, text)
