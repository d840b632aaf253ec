"""The README's verbs, files and targets are there. (Its snippets run with those of the other pages.)"""

import re
from pathlib import Path

from typer.testing import CliRunner

from fptt_dist.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_verb_in_the_table_exists_and_every_verb_is_in_the_table() -> None:
    listed = set(re.findall(r"^\| `fptt-dist ((?:config |data )?\w+)", README, re.MULTILINE))
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands = group.typer_instance.registered_commands
        verbs |= {f"{group.name} {command.callback.__name__}" for command in commands if command.callback}
    assert listed == verbs
    for verb in verbs:
        assert CliRunner().invoke(app, [*verb.split(), "--help"]).exit_code == 0


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:fptt_dist|launchers|configs|tests|docs|\.ci)[\w/.]*)`", README) + re.findall(
        r"\]\((docs/[^)]+)\)", README
    )
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_commands_config_keys_are_real() -> None:
    from fptt_dist.config import load, parse_overrides

    (command,) = re.findall(r"^fptt-dist train (.*)$", README, re.MULTILINE)
    config, *overrides = command.split()
    assert load(ROOT / config, parse_overrides(overrides)).fptt.alpha == 0.5


def test_both_make_targets_are_listed() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("train", "test", "test-all"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "set -- test-all test-clients" in (ROOT / ".ci" / "run").read_text()
