"""A site's file and a command's options: which wins, what SLURM's times mean, and what is said of wrong values."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptt_dist.config import ConfigError, load
from fptt_dist.config.loading.loader import PACKAGED
from fptt_dist.config.loading.yaml import parse
from fptt_dist.config.schema.cluster import Cluster, load_cluster

EXAMPLE = PACKAGED / "clusters" / "example.yaml"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(
        "partition: gpu\ntime: 08:00:00\nnodes: 2\ntasks_per_node: 3\nsetup: [module load cuda, 'true']\nmem_gb: 4\n"
    )
    return path


def message_of(path: Path | None, options: Mapping[str, Any]) -> str:
    try:
        load_cluster(path, options)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_neither_file_nor_options() -> None:
    cluster = load_cluster(None, {"nodes": None, "partition": None})
    assert cluster == Cluster()
    assert (cluster.nodes, cluster.tasks, cluster.minutes) == (1, 1, 60)


def test_an_option_wins_over_the_file(site: Path) -> None:
    cluster = load_cluster(site, {"partition": "cpu", "time": None, "nodes": 5, "setup": ["echo mine"]})
    assert (cluster.partition, cluster.nodes, cluster.setup) == ("cpu", 5, ("echo mine",))
    assert (cluster.time, cluster.minutes, cluster.tasks, cluster.mem_gb) == ("08:00:00", 480, 3, 4.0)
    assert load_cluster(site, {}).setup == ("module load cuda", "true")


def test_gpus_and_tasks_of_a_node_replace_each_other(site: Path) -> None:
    cluster = load_cluster(site, {"gpus_per_node": 8})
    assert (cluster.gpus_per_node, cluster.tasks_per_node, cluster.tasks) == (8, None, 8)
    site.write_text("gpus_per_node: 4\n")
    assert load_cluster(site, {}).tasks == 4
    cluster = load_cluster(site, {"tasks_per_node": 2})
    assert (cluster.gpus_per_node, cluster.tasks_per_node, cluster.tasks) == (None, 2, 2)
    assert load_cluster(site, {"gpus_per_node": 2, "tasks_per_node": 2}).tasks == 2
    assert message_of(site, {"gpus_per_node": 8, "tasks_per_node": 2}) == (
        "tasks_per_node=2 with gpus_per_node=8: each worker takes one GPU; give one of the two (--tasks-per-node, "
        "--gpus-per-node)"
    )
    site.write_text("gpus_per_node: 4\ntasks_per_node: 2\n")
    assert message_of(site, {}).endswith(f"give one of the two ({site}:2, {site}:1)")


def test_the_example_says_every_key_and_changes_little() -> None:
    values, _ = parse(EXAMPLE.read_text(), str)
    assert list(values) == list(Cluster.model_fields)
    cluster = load_cluster(EXAMPLE, {})
    changed = {key for key in Cluster.model_fields if getattr(cluster, key) != getattr(Cluster(), key)}
    assert changed == {"time", "cpus_per_task"}


def test_the_example_is_no_training_configuration() -> None:
    with pytest.raises(ConfigError) as caught:
        load("nothing")
    known = str(caught.value).partition("packaged: ")[2].partition(", and the paper's ")[0].split(", ")
    assert known == sorted(path.name for path in PACKAGED.glob("*.yaml"))


# SLURM's times, as `man sbatch` lists them, each with what it comes to.

NUMBER = st.integers(0, 300)
FORMS = (
    "minutes",
    "minutes:seconds",
    "hours:minutes:seconds",
    "days-hours",
    "days-hours:minutes",
    "days-hours:minutes:seconds",
)
NO_TIMES = (
    "",
    "x",
    "1x",
    "8h",
    "1.5",
    "-5",
    "+5",
    " 5",
    "5 ",
    "1\n",
    "1:2:3:4",
    "1-",
    "-1:00",
    "1-2-3",
    ":30",
    "30:",
    "1-2:",
)
ZEROS = ("0", "00:00:00", "0-0")


@st.composite
def times(draw: st.DrawFn) -> tuple[str, timedelta]:
    units = draw(st.sampled_from(FORMS))
    names = units.replace("-", ":").split(":")
    numbers = {name: draw(NUMBER) for name in names}
    text = units
    for name, number in numbers.items():
        text = text.replace(name, f"{number:0{draw(st.integers(1, 3))}d}")
    return text, timedelta(**numbers)


@given(times())
def test_every_form_of_a_time(time: tuple[str, timedelta]) -> None:
    text, meant = time
    if meant:
        assert load_cluster(None, {"time": text, "signal_lead_seconds": 1}).minutes == -(-meant // timedelta(minutes=1))
    else:
        assert " is no time of SLURM's" in message_of(None, {"time": text})


def test_what_is_no_time() -> None:
    said = "is no time of SLURM's: type minutes, hh:mm:ss, or days-hh:mm:ss, such as 08:00:00 (--time)"
    texts = (*NO_TIMES, *ZEROS, "UNLIMITED")
    assert {text: message_of(None, {"time": text}) for text in texts} == {text: f"time={text} {said}" for text in texts}


def test_a_mistake(tmp_path: Path) -> None:
    path, wrong = tmp_path / "site.yaml", {}
    for file, options, message in (
        ("nodes: 0\n", {}, "nodes: 0 is not allowed; allowed: int >= 1 (FILE:1)"),
        ("nodes: 3\n", {"nodes": 0}, "nodes: 0 is not allowed; allowed: int >= 1 (--nodes)"),
        ("", {"gpus_per_node": -1}, "gpus_per_node: -1 is not allowed; allowed: int >= 1 or null (--gpus-per-node)"),
        ("\nnodez: 3\n", {}, "nodez: unknown key; did you mean nodes? (FILE:2)"),
        ("mem_gb: .inf\n", {}, "mem_gb: .inf is not allowed; allowed: float > 0 or null, finite (FILE:1)"),
        ("mem_gb: 0\n", {}, "mem_gb: 0 is not allowed; allowed: float > 0 or null (FILE:1)"),
        ("signal_lead_seconds: soon\n", {}, "signal_lead_seconds: soon is not allowed; allowed: int >= 1 (FILE:1)"),
        (
            "setup: module load cuda\n",
            {},
            'setup: "module load cuda" is not allowed; allowed: list of one or more: text',
        ),
        ("sbatch: [--x, -p]\n", {}, "sbatch: -p is no long option: type it as --name or --name=value (FILE:1)"),
        ("srun: [mpi=none]\n", {}, "srun: mpi=none is no long option: type it as --name or --name=value (FILE:1)"),
        ("- nodes\n", {}, "FILE: not a mapping of keys to values, such as seed: 1"),
        ("nodes: [\n", {}, "FILE:"),
    ):
        path.write_text(file)
        said = message_of(path, options)
        if not said.startswith(message.replace("FILE", str(path))):
            wrong[file] = said
    assert wrong == {}


def test_a_time_that_is_over_before_it_begins() -> None:
    assert load_cluster(None, {"time": "2", "signal_lead_seconds": 60}).minutes == 2
    assert "is not less than time=" in message_of(None, {"time": "1", "signal_lead_seconds": 60})
    assert "is not less than time=" in message_of(None, {"time": "1"})


def test_minutes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("time: 30\n")
    assert load_cluster(path, {}).minutes == 30


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("nodes: 0\nsignal_lead_seconds: 0\nqoss: x\n")
    assert len(message_of(path, {"gpus_per_node": 0}).splitlines()) == 4


def test_an_empty_file_and_none(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").touch()
    assert load_cluster(tmp_path / "site.yaml", {}) == Cluster()
    gone = tmp_path / "gone.yaml"
    assert message_of(gone, {}) == f"{gone}: cannot be read: No such file or directory"
    assert message_of(tmp_path, {}) == f"{tmp_path}: is a folder, not a file"
