"""What a user reads about a wrong configuration."""

import logging
from pathlib import Path

import pytest

from fptt_dist.config import ConfigError, load, parse_overrides


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(text: str, *words: str) -> list[str]:
    Path("a.yaml").write_text(text)
    try:
        load("a.yaml", parse_overrides(words))
    except ConfigError as error:
        return str(error).splitlines()
    return ["accepted"]


MESSAGES = {
    "fptt:\n  alpha: -1": "fptt.alpha: -1 is not allowed; allowed: float >= 0 (a.yaml:2)",
    "task:\n\n  length: '20'": 'task.length: "20" is not allowed; allowed: int >= 2 (a.yaml:3)',
    "fptt: {windows: 1.5}": "fptt.windows: 1.5 is not allowed; allowed: int >= 1 or null (a.yaml:1)",
    "fptt: {alpha: true}": "fptt.alpha: true is not allowed; allowed: float >= 0 (a.yaml:1)",
    "fptt: {alpha: .inf}": "fptt.alpha: .inf is not allowed; allowed: float >= 0, finite (a.yaml:1)",
    "fptt: {alpha: .nan}": "fptt.alpha: .nan is not allowed; allowed: float >= 0, finite (a.yaml:1)",
    "fptt: {reset_dual: yes}": "fptt.reset_dual: yes is not allowed; allowed: true or false (a.yaml:1)",
    "resume: 3": "resume: 3 is not allowed; allowed: one of never, auto (a.yaml:1)",
    "run: {dir: 3}": "run.dir: 3 is not allowed; allowed: text or null (a.yaml:1)",
    "algorithm: fppt": (
        "algorithm: fppt is not allowed; allowed: one of fptt, tbptt, tbptt_accumulated, bptt_aux, bptt; "
        "did you mean fptt? (a.yaml:1)"
    ),
    "optimizer: {betas: [0.9, 2]}": (
        "optimizer.betas[1]: 2 is not allowed; allowed: list of 2: float >= 0 and < 1 (a.yaml:1)"
    ),
    "optimizer: {betas: [0.9]}": "optimizer.betas[1]: must be set; allowed: list of 2: float >= 0 and < 1 (a.yaml:1)",
    "optimizer:\n  name: sgdd": (
        "optimizer.name: sgdd is not allowed; allowed: one of adam, adamw, sgd, rmsprop, nt_asgd; "
        "did you mean sgd? (a.yaml:2)"
    ),
    "optimizer: {name: [1]}": (
        "optimizer.name: [1] is not allowed; allowed: one of adam, adamw, sgd, rmsprop, nt_asgd (a.yaml:1)"
    ),
    "task: {name: ading}": (
        "task.name: ading is not allowed; allowed: one of adding, pixels, language, copying, arrays, PATH.py:CLASS, "
        "python:CLASS; did you mean adding? (a.yaml:1)"
    ),
    "fptt: {schedule: {name: linaer}}": (
        "fptt.schedule.name: linaer is not allowed; allowed: one of constant, linear, cosine, inverse_lr; "
        "did you mean linear? (a.yaml:1)"
    ),
    "optimizer: adam": (
        "optimizer: adam is not allowed; allowed: a section of keys, such as optimizer.name=adam (a.yaml:1)"
    ),
    "train: 3": "train: 3 is not allowed; allowed: a section of keys (a.yaml:1)",
    "run:": "run: null is not allowed; allowed: a section of keys (a.yaml:1)",
    "seed: 1\nschedule:\n  factor: 0.1\n  name: step": (
        "schedule.milestones: must be set; allowed: list of one or more: int >= 1 (a.yaml:4)"
    ),
    "seed: 1\noptimzer: {}": "optimzer: unknown key; did you mean optimizer? (a.yaml:2)",
    "fptt:\n  windos: 3": "fptt.windos: unknown key; did you mean fptt.windows? (a.yaml:2)",
    "lr: 0.1": "lr: unknown key; did you mean optimizer.lr? (a.yaml:1)",
    "xyzzy: 0.1": "xyzzy: unknown key (a.yaml:1)",
    "optimizer: {name: sgd, betas: [0, 0]}": (
        "optimizer.betas: unknown key with optimizer.name=sgd; it belongs to adam, adamw (a.yaml:1)"
    ),
    "optimizer: {learning_rate: 1}": "optimizer.learning_rate: unknown key (a.yaml:1)",
    "optimizer.lr: 1": (
        "optimizer.lr: unknown key; in a file, sections are written one inside another, without dots (a.yaml:1)"
    ),
    f"seed: {'x' * 200}": f"seed: {'x' * 80}… is not allowed; allowed: int >= 0 and < 9223372036854775808 (a.yaml:1)",
}


def test_messages_of_a_file() -> None:
    assert {text: lines(text) for text in MESSAGES} == {text: [message] for text, message in MESSAGES.items()}


def test_messages_of_an_override_over_a_file() -> None:
    expected = {
        "seed=-1": "seed: -1 is not allowed; allowed: int >= 0 and < 9223372036854775808",
        "optimizer={lr: fast}": "optimizer.lr: fast is not allowed; allowed: float > 0",
        "schedule.name=step": "schedule.milestones: must be set; allowed: list of one or more: int >= 1",
        "lr=1": "lr: unknown key; did you mean optimizer.lr?",
    }
    text = "seed: 1\noptimizer: {lr: 0.1}\nschedule: {name: constant}"
    found = {word: lines(text, word) for word in expected}
    assert found == {word: [f"{message} (override {word})"] for word, message in expected.items()}


def test_all_problems_are_told_one_per_line() -> None:
    found = lines("seed: x\nfptt: {alpha: -1, q: 1}", "task.length=1", "train.max_epochs=0")
    assert [line.split(":")[0] for line in found] == ["task.length", "fptt.alpha", "fptt.q", "train.max_epochs", "seed"]


def test_a_conflict_names_where_its_keys_were_set() -> None:
    found = lines("train: {max_epochs: 1}\nfptt:\n  windows: 300", "task.length=50")
    assert len(found) == 1
    assert found[0].endswith("(a.yaml:3, override task.length=50)")


def test_nothing_is_told_as_dropped_when_the_configuration_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fptt_dist"):
        lines("optimizer: {lr: 1}", "optimizer.name=sgdd")
    assert caplog.records == []


def test_the_file_at_fault_is_the_one_that_set_the_value() -> None:
    Path("base.yaml").write_text("seed: 1\nfptt:\n  alpha: -1")
    assert lines("extends: base.yaml\nfptt: {beta: 3}") == [
        "fptt.alpha: -1 is not allowed; allowed: float >= 0 (base.yaml:3)",
        "fptt.beta: 3 is not allowed; allowed: float > 0 and <= 1 (a.yaml:2)",
    ]


def test_a_section_that_is_misspelled() -> None:
    assert lines("", "ftp.alpha=0.3") == ["ftp: unknown key; did you mean fptt.alpha? (override ftp.alpha=0.3)"]
    assert lines("optimiser: {lr: 1}")[0].startswith("optimiser: unknown key; did you mean optimizer? (")
    assert lines("", "nothing.whatever=0.3") == ["nothing: unknown key (override nothing.whatever=0.3)"]


def test_fifty_problems_are_told_one_by_one() -> None:
    said = lines("\n".join(f"k{i}: 1" for i in range(60)))
    assert [line.partition(":")[0] for line in said] == [*(f"k{i}" for i in range(50)), "and 10 more"]
