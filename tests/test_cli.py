"""The verbs, as a user types them; a mistake is one message, exit code 2, no traceback and nothing written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from PIL import Image
from typer.models import ArgumentInfo

from fptt_dist.cli import app, config, data, main
from fptt_dist.config import describe, dump, load
from fptt_dist.config.loading.yaml import parse
from tests.training.helpers import isolated, result, resumed, tiny, train_until

ROOT = Path(__file__).parents[1]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def fptt_dist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`fptt-dist …` in this process: its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fptt-dist", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose best checkpoint is not its latest."""
    from fptt_dist.training.run import train

    run = tmp_path_factory.mktemp("cli") / "run"
    with isolated():
        outcome = train(tiny(run, {"evaluate.every_batches": 1, "optimizer.lr": 0.05}, batches=20))
    assert outcome.best_batch < 20
    return run


COMMANDS = {
    f"{group} {command.name or command.callback.__name__}".strip(): command.callback
    for group, program in (("", app), ("config", config.app), ("data", data.app))
    for command in program.registered_commands
    if command.callback is not None
}


def test_help(fptt_dist: Command, subtests: pytest.Subtests) -> None:
    for verb in ("", "config", "data", *COMMANDS):
        with subtests.test(verb):
            code, out, err = fptt_dist(*verb.split(), "--help")
            assert (code, err) == (0, "")
            assert re.search(rf"Usage: .*fptt-dist {verb}", out)
            groups = {"": COMMANDS, "config": ("init", "keys", "show", "schema"), "data": ("fetch", "check")}
            inside = groups.get(verb, ())
            assert [name for name in inside if not re.search(rf"\b{name.partition(' ')[0]} ", out)] == []


def test_config_init_tells_of_guesses_that_make_it_another_task(fptt_dist: Command, tmp_path: Path) -> None:
    table = tmp_path / "flow.csv"
    table.write_text("time,flow\n" + "".join(f"{step},{step % 7}\n" for step in range(60)))
    code, out, err = fptt_dist("config", "init", str(table), "-o", str(tmp_path / "flow.yaml"))
    assert (code, err) == (0, "")
    first, second, last = out.splitlines()
    assert first == "No column has a usual name of a target. To learn one: config init --target COLUMN."
    assert second.startswith("No column has a usual name of ids, so all rows are one series")
    assert last.endswith("flow.yaml --dry-run")


def test_config_init_writes_a_new_file_alone(fptt_dist: Command, tmp_path: Path, subtests: pytest.Subtests) -> None:
    data, config = tmp_path / "data.csv", tmp_path / "mine.yaml"
    data.write_text("id,time,x,y\n" + "".join(f"{row // 2},{row % 2},{row},{row // 2 % 2}\n" for row in range(40)))
    code, printed, err = fptt_dist("config", "init", str(data))
    assert (code, err) == (0, "")
    code, out, err = fptt_dist("config", "init", str(data), "-o", str(config))
    assert (code, out, err) == (0, f"{config} is written; next: fptt-dist train {config} --dry-run\n", "")
    assert config.read_text() == printed
    assert load(config).task.name == "arrays"
    code, out, err = fptt_dist("config", "init", str(data), "--target", "x", "--out", str(config))
    said = f"fptt-dist: --out: {config} is there already: type another name, or remove it\n"
    assert (code, out, err) == (2, "", said)
    assert config.read_text() == printed
    code, out, err = fptt_dist("config", "init", str(data), "--target", "z", "-o", str(tmp_path / "other.yaml"))
    assert (code, out) == (2, "")
    assert err == f"fptt-dist: {data} has no column 'z', which --target names: it has 'id', 'time', 'x', 'y'\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "mine.yaml"]


def test_config_keys(fptt_dist: Command) -> None:
    code, out, _ = fptt_dist("config", "keys")
    assert code == 0
    names = {line.split()[0] for line in out.splitlines()[1:] if line and not line.startswith(" ")}
    assert names == {key.name for key in describe()}
    code, out, _ = fptt_dist("config", "keys", "fptt")
    lines = [line for line in out.splitlines()[1:] if line.strip()]
    assert code == 0
    assert {"fptt.alpha", "fptt.schedule.name"} <= {line.split()[0] for line in lines}
    assert all(line.startswith(("fptt.", " ")) for line in lines)
    assert re.search(r"fptt.beta +float > 0 and <= 1 +0.5 +fraction of the center that each update replaces", out)


def test_config_show_reads_back(fptt_dist: Command, tmp_path: Path) -> None:
    code, out, _ = fptt_dist("config", "show", "add_task", "fptt.alpha=0.3", "optimizer.lr=1e-4")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(out)
    assert load(tmp_path / "shown.yaml") == load("add_task", {"fptt.alpha": 0.3, "optimizer.lr": 1e-4})


def test_config_schema_knows_every_key_of_the_packaged_configuration(fptt_dist: Command) -> None:
    code, out, _ = fptt_dist("config", "schema")
    assert code == 0
    schema = json.loads(out)
    values, _ = parse((ROOT / "configs" / "add_task.yaml").read_text(), str)

    def alternatives(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return alternatives(schema["$defs"][node["$ref"].rpartition("/")[2]])
        inner = [*node.get("anyOf", []), *node.get("oneOf", [])]
        return [found for part in inner for found in alternatives(part)] if inner else [node]

    def accepts(node: dict[str, Any], value: Any) -> bool:
        kinds = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "null": type(None)}
        for part in alternatives(node):
            if isinstance(value, dict):
                known = part.get("properties", {})
                if set(part.get("required", ())) <= set(value) <= set(known) and all(
                    accepts(known[key], item) for key, item in value.items()
                ):
                    return True
            elif "const" in part or "enum" in part:
                if value == part.get("const") or value in part.get("enum", ()):
                    return True
            elif isinstance(value, kinds.get(part.get("type", ""), ())):
                return True
        return False

    assert accepts(schema, values)
    assert not accepts(schema, {**values, "modle": {}})
    assert not accepts(schema, {**values, "train": {"batch_size": "many"}})


def test_train_says_what_came_out_and_where_it_is(fptt_dist: Command, tmp_path: Path) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(dump(tiny(run, batches=6)))
    code, out, _ = fptt_dist("train", str(config), "seed=4")
    found = result(run)
    assert code == 0
    assert found["seed"] == 4
    first, second = out.splitlines()
    assert first.startswith(f"adding fptt: test mse {found['value']:.5g} at batch 6 of 6 (18 updates, ")
    assert second == f"everything is in {run}"


def test_evaluate_gives_the_results_numbers(finished: Path, fptt_dist: Command) -> None:
    code, out, err = fptt_dist("evaluate", str(finished))
    assert (code, err) == (0, "")
    found = result(finished)
    values = {"validation": found["validation"], "test": found["value"]}
    named = {split: {found["metric"]: value} for split, value in values.items()}
    assert json.loads(out) == {**values, "metrics": named}
    code, out, _ = fptt_dist("evaluate", str(finished), "--checkpoint", "latest")
    last = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()][-2]
    assert (code, last["split"], last["batch"]) == (0, "validation", 20)
    assert json.loads(out)["validation"] == last["value"] != found["validation"]


def test_report_writes_into_the_first_folder(finished: Path, fptt_dist: Command, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("a", "b"):
        shutil.copytree(finished, runs / name)
    (runs / "report_figures").mkdir()  # an older page and its pictures are not in the way
    for name in ("report.html", "report_figures/old.png"):
        (runs / name).write_text("old")
    code, out, _ = fptt_dist("report", str(runs))
    assert code == 0
    value = result(finished)["value"]
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[3:5]] == [str(runs / name) for name in "ab"]
    assert all(f"{value:.5f}" in line for line in lines[3:5])
    assert lines[-1] == f"page: {runs / 'report.html'}"
    text = (runs / "report.html").read_text()
    assert f"{value:.5g}" in text
    pictures = [picture for picture in (runs / "report_figures").glob("*.png") if picture.name != "old.png"]
    assert text.count("<img") == len(pictures) > 0
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 300


def test_report_into_a_place_that_cannot_be_written(finished: Path, fptt_dist: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, out, err = fptt_dist("report", str(finished), "--out", str(tmp_path / "file" / "page.html"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.match(r"fptt-dist: .*/file/page\S* could not be written: ", err)


def test_a_dry_run_prints_and_writes_nothing(
    fptt_dist: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = fptt_dist("train", "add_task", "--dry-run", "model.hidden=8", "device=cpu")
    assert (code, err) == (0, "")
    count = 4 * 8 * (2 + 8) + 8 * 8 + 8 + 1
    assert re.search(r"inputs of the batch \(steps, sequences, features\) +\(200, 64, 2\)", out)
    assert re.search(r"output of a window +\(1, 64, 1\)", out)
    assert re.search(r"windows +10 of 20 steps; 10 update\(s\) per batch", out)
    assert re.search(rf"parameters +{count}, {count - 9} of them recurrent", out)
    assert re.search(rf"W̄ and u +{8 * count / 2**20:.3f} MiB", out)
    assert re.search(rf"state of the base optimizer +{(8 * count + 24) / 2**20:.3f} MiB", out)
    assert out.endswith("nothing was written\n")
    assert list(tmp_path.iterdir()) == []


USAGE = {  # from typer, within a frame
    "trian": "No such command 'trian'",
    "config shwo": "No such command 'shwo'",
    "train": "Missing argument 'CONFIG'",
    "train add_task --dryrun": "No such option: --dryrun",
    "evaluate": "Missing argument 'RUN'",
    "evaluate run --checkpoint first": "'first' is not one of 'best'",
    "report": "Missing argument 'RUN",
    "reproduce": "Missing argument 'TARGET",
}
NO_RUN = "is not a run's folder, it has no config.yaml: type the folder of one run"
ADD = "train add_task train.max_batches=1 device=cpu"
MISTAKES = {  # our own: one message, from "fptt-dist: " to the end
    "train nothing.yaml": "nothing.yaml: no such file; packaged: ",
    "train empty": "empty: is a folder, not a file",
    "train unknown.yaml": "train.bachsize: unknown key; did you mean train.batch_size",
    "train list.yaml": "list.yaml: not a mapping of keys to values, such as seed: 1",
    "train truncated.yaml": "truncated.yaml:2: not YAML: ",
    "train add_task train.bachsize=3": "train.bachsize: unknown key; did you mean train.batch_size",
    "train add_task train.batch_size=0": "train.batch_size: 0 is not allowed; allowed: int >= 1 (override",
    "train add_task train.batch_size=many": "train.batch_size: many is not allowed; allowed: int >= 1 (override",
    "reproduce tabel4": "tabel4",
    "reproduce table4 seed=3": "seed=3: reproduce trains every row with the seeds 0, 1, …: type --seeds 3 for three",
    "reproduce table4 --budget smoke data.root=empty": "empty/ptb has no ptb.train.txt. Get the Penn Treebank with: ",
    "train paper/ptb300_fptt data.root=empty": "empty/ptb has no ptb.train.txt. Get the Penn Treebank with: fptt-dist ",
    "train add_task model.layer=awd_lstm": "model.layer=awd_lstm is a language model, and task.name=adding is no ",
    "train add_task word": "override word: not of the form key=value, such as optimizer.lr=1e-3",
    "train add_task seed=": "override seed=: the value is empty; type seed=null for none",
    "train add_task fptt.windows=500": "fptt.windows=500 is more than the steps of a sequence, task.length=200: type",
    "train add_task train.batch_size=20000": "train.batch_size=20000 is more than the 12800 training sequences of an ",
    "train add_task train.max_batches=null": "train.max_batches=null and train.max_epochs=null leave ",
    "train add_task optimizer.name=sgd": "fptt.metric=preconditioned needs an optimizer with a preconditioner",
    "train add_task task.length=2 fptt.windows=1 model.init=chrono": "model.init=chrono needs at ",
    f"{ADD} run.dir=file": "run.dir=file is a file: type run.dir=… for the run's own folder",
    f"{ADD} run.dir=file/run": "run.dir=file/run cannot be created: Not a directory",
    f"{ADD} run.dir=/proc/run": "run.dir=/proc/run cannot be created: No such file or directory",
    f"{ADD} run.dir=other": "run.dir=other holds a run already: type resume=auto to resume it, or run.dir=…",
    f"{ADD} run.dir=.": "run.dir=. is not empty and holds no run: type run.dir=… for another folder",
    "evaluate nothing": f"nothing {NO_RUN}",
    "evaluate empty": f"empty {NO_RUN}",
    "evaluate file": f"file {NO_RUN}",
    "evaluate other": "other/config.yaml is no run's, or damaged: it has no algorithm: ",
    "report nothing": "nothing is not there: type fptt-dist report RUN…, the folders of runs",
    "report file": "file is a file, not a folder: type fptt-dist report RUN…, the folders of runs",
    "report empty": "empty holds no run: neither it nor a folder below it has a config.yaml; fptt-dist jobs FOLDER ",
    "report other --out drawn": "--out drawn: the report is one file: type --out drawn/report.html",
    "report other": "other cannot be read as a run's folder: config.yaml is no configuration of a run",
    "config keys fppt.alpha": "fppt.alpha: no such key or section; did you mean ",
    "config show nothing.yaml": "nothing.yaml: no such file; packaged: ",
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all that can be named by mistake; nothing in it may change."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    texts = {"file": "x", "other/config.yaml": "a: 1\n", "unknown.yaml": "train:\n  bachsize: 3\n"}
    for name, text in {**texts, "list.yaml": "- 1\n", "truncated.yaml": "train: {\n"}.items():
        (tmp_path / name).write_text(text)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_bad_usage(workplace: Path, fptt_dist: Command, subtests: pytest.Subtests) -> None:
    for command, message in USAGE.items():
        with subtests.test(command):
            code, out, err = fptt_dist(*command.split())
            assert (code, out) == (2, "")
            assert message in err
            assert "Traceback" not in err


def test_a_mistake(workplace: Path, fptt_dist: Command, subtests: pytest.Subtests) -> None:
    for command, message in MISTAKES.items():
        with subtests.test(command):
            code, out, err = fptt_dist(*command.split())
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert err.startswith(f"fptt-dist: {message}")


@pytest.mark.skipif("CUDA_HOME" in os.environ, reason="for machines without a GPU")
def test_no_gpu(workplace: Path, fptt_dist: Command) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    code, _, err = fptt_dist("train", "add_task", "device=cuda")
    assert code == 2
    assert err == (
        "fptt-dist: device=cuda, but torch finds no usable GPU: type device=cpu, or install a CUDA build of torch\n"
    )


BROKEN = {  # the variables WORLD_SIZE, RANK and LOCAL_RANK
    ("2", None, None): "WORLD_SIZE set in the environment, but not RANK, LOCAL_RANK: start with torchrun",
    ("2", "0", "x"): "LOCAL_RANK='x' in the environment is not a number: unset LOCAL_RANK",
    ("2", "2", "0"): "RANK=2 in the environment is not below WORLD_SIZE=2: start with torchrun",
}


def test_a_broken_environment(
    workplace: Path, fptt_dist: Command, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    for values, message in BROKEN.items():
        for name, value in zip(("WORLD_SIZE", "RANK", "LOCAL_RANK"), values, strict=True):
            if value is not None:
                monkeypatch.setenv(name, value)
        with subtests.test(message):
            code, out, err = fptt_dist(*ADD.split())
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert message in err


def test_a_run_without_a_checkpoint(tmp_path: Path, fptt_dist: Command) -> None:
    config = tiny(tmp_path / "run", batches=4)
    again = f"resume with: fptt-dist train {tmp_path / 'run' / 'config.yaml'} resume=auto"
    train_until(config, 1)
    code, _, err = fptt_dist("evaluate", str(tmp_path / "run"))
    assert (code, err) == (2, f"fptt-dist: {tmp_path / 'run'} has no complete best checkpoint yet: {again}\n")
    assert fptt_dist("evaluate", str(tmp_path / "run"), "--checkpoint", "latest")[0] == 0
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (folder / "manifest.json").unlink()
    code, _, err = fptt_dist("evaluate", str(tmp_path / "run"), "--checkpoint", "latest")
    assert code == 2
    assert err.endswith("is valid, for the reasons above: put a copy back\n")


def test_a_loss_that_is_not_finite(tmp_path: Path, fptt_dist: Command) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump(tiny(tmp_path / "run", {"optimizer.lr": 1e30, "train.max_norm": None})))
    code, out, err = fptt_dist("train", str(config))
    assert (code, out) == (1, "")
    assert err.startswith("fptt-dist: the loss is not finite in window 2 of 3 of batch 1, epoch 0.")
    assert err.count("\n") == 1


def test_a_finished_run_says_so(finished: Path, fptt_dist: Command, caplog: pytest.LogCaptureFixture) -> None:
    before = (finished / "result.json").read_bytes()
    code, out, _ = fptt_dist("train", str(finished / "config.yaml"), "resume=auto")
    assert code == 0
    assert "nothing left to do" in caplog.text
    assert out.startswith("adding fptt: test mse ")
    assert (finished / "result.json").read_bytes() == before


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fptt_dist", "train", "nothing.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fptt-dist: nothing.yaml: no such file")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_says_of_a_difference_can_be_typed(tmp_path: Path, fptt_dist: Command) -> None:
    config = resumed(tiny(tmp_path / "run", batches=4))
    train_until(config, 1)
    path = str(tmp_path / "run" / "config.yaml")
    code, _, err = fptt_dist("train", path, "fptt.windows=null")
    assert code == 2
    assert "  fptt.windows: 3 there, null now" in err.splitlines()
    assert fptt_dist("train", path, "fptt.windows=3")[0] == 0


def test_the_sbatch_file_of_a_dry_run(fptt_dist: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("FPTT_CLUSTER", raising=False)
    words = ["submit", "add_task", "--dry-run", "--nodes", "2", "--time", "1-0", "--setup", "a", "--setup", "b c"]
    code, out, err = fptt_dist(*words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --time=1440", "#SBATCH --ntasks-per-node=1"} <= set(lines)
    assert lines[lines.index("# setup") :][1:4] == ["set -e", "a", "b c"]
    assert fptt_dist(*words) == (code, out, err)
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\nnodes: 3\n")
    monkeypatch.setenv("FPTT_CLUSTER", str(site))
    _, out, _ = fptt_dist(*words)
    assert {"#SBATCH --nodes=2", "#SBATCH --partition=gpu"} <= set(out.splitlines())
    monkeypatch.setenv("FPTT_CLUSTER", str(tmp_path / "gone.yaml"))
    assert fptt_dist(*words) == (
        2,
        "",
        f"fptt-dist: {tmp_path / 'gone.yaml'}: cannot be read: No such file or directory\n",
    )
    assert list((tmp_path / "work").iterdir()) == []


SUBMIT = {
    "--nodes 0": "nodes: 0 is not allowed; allowed: int >= 1 (--nodes)",
    "--nodes 2 --local": "--nodes 2 with --local, which is this node alone: type --nodes 1",
    "--time soon": "time=soon is no time of SLURM's: type minutes, hh:mm:ss, or days-hh:mm:ss, such as",
    "--array": "add_task: no such file; packaged: sweeps/alpha_seeds.yaml",
    "--cluster gone.yaml": "gone.yaml: cannot be read: No such file or directory",
    "": "there is no sbatch here: type the command on a login node of the cluster, or add --local",
}


def test_a_mistake_of_submit(
    workplace: Path, fptt_dist: Command, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for words, message in SUBMIT.items():
        with subtests.test(words):
            code, out, err = fptt_dist("submit", "add_task", *words.split())
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert err.startswith(f"fptt-dist: {message}")


def test_jobs(finished: Path, fptt_dist: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "runs" / "a")
    (tmp_path / "runs" / "b").mkdir()
    log = tmp_path / "12_0_log.out"
    log.write_text("fptt-dist: the reason\n")
    (tmp_path / "runs" / "b" / "job.json").write_text(json.dumps({"job": "12", "log": str(log)}))
    code, out, err = fptt_dist("jobs")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["run", "state", "batch", "newest", "value", "job", "nodes"]
    assert re.match(r"runs/a +finished +20 of 20 +test mse [\d.]+ *$", lines[1])
    assert re.match(r"runs/b +not finished +12 *$", lines[2])
    assert lines[3:] == ["", "runs/b: fptt-dist: the reason", f"  (the whole log: {log})"]
    assert fptt_dist("jobs", "elsewhere") == (
        2,
        "",
        f"fptt-dist: {tmp_path}/elsewhere: no run is there: type fptt-dist jobs FOLDER, the folder above the runs' "
        "folders\n",
    )


def test_a_run_that_was_moved_is_not_begun_anew(finished: Path, fptt_dist: Command, tmp_path: Path) -> None:
    moved = shutil.copytree(finished, tmp_path / "moved")
    command = ("train", str(moved / "config.yaml"), "resume=auto")
    before = sorted(finished.parent.rglob("*"))
    for start in (command, ("launch", "--nproc", "1", *command[1:]), ("submit", *command[1:], "--local")):
        code, out, err = fptt_dist(*start)
        assert (code, out) == (2, "")
        assert err.endswith(f"type run.dir={moved} to resume it where it is\n")
    assert sorted(finished.parent.rglob("*")) == before
    code, _, err = fptt_dist(*command, f"run.dir={moved}")
    assert code == 0
    assert "nothing left to do" in err or not err


def test_names_with_terminal_escapes(finished: Path, fptt_dist: Command, tmp_path: Path) -> None:
    """A folder that somebody else has named, in their own words about it."""
    evil = tmp_path / "\x1b]0;mine\x07\x1b[2J"
    shutil.copytree(finished, evil / "a")
    (evil / "b").mkdir()
    (evil / "b" / "config.yaml").write_text("a: 1")
    (evil / "c").mkdir()
    (evil / "c" / "log").write_text("fptt-dist: \x1b[31mred\n")
    (evil / "c" / "job.json").write_text(json.dumps({"job": "process 12", "log": str(evil / "c" / "log")}))
    for command in (("jobs",), ("report",), ("evaluate",)):
        _, out, err = fptt_dist(*command, str(evil))
        assert r"\x1b]0;mine\x07\x1b[2J" in out + err
        assert "\x1b" not in (out + err).replace("\x1b[1m", "").replace("\x1b[0m", "")


REMOTE = "s3://bucket/x"
NO_PATHS = {  # parameters of text that are no path
    *("account", "constraint", "max_restarts", "name", "only", "overrides", "partition", "prefix", "qos", "rdzv"),
    *("series", "setup", "target", "time"),
}


def paths() -> Iterator[tuple[str, list[str]]]:
    """Every parameter that is a path: its name in messages, and a command that gives it a remote one."""
    for verb, callback in COMMANDS.items():
        hints = get_type_hints(callback, include_extras=True)
        known = {name: (str(get_args(hint)[0]), get_args(hint)[1]) for name, hint in hints.items() if name != "return"}
        texts = {name for name, (kind, _) in known.items() if "str" in kind}
        assert texts <= NO_PATHS, f"{verb}: {texts - NO_PATHS}: a path, or one for NO_PATHS"
        words = {name: "x" for name, (_, info) in known.items() if isinstance(info, ArgumentInfo)}
        words |= {name: "--nproc=2" for name in known if name == "nproc"}
        words.pop("overrides", None)
        for name in (name for name, (kind, _) in known.items() if "Path" in kind):
            info = known[name][1]
            given = REMOTE if isinstance(info, ArgumentInfo) else f"--{name}={REMOTE}"
            shown = str(info.metavar).strip("[]…") if isinstance(info, ArgumentInfo) else f"--{name}"
            yield shown, [*verb.split(), *({**words, name: given}).values()]


def test_no_parameter_takes_a_remote_path(workplace: Path, fptt_dist: Command, subtests: pytest.Subtests) -> None:
    said = '"s3:/bucket/x" is a remote path, and only local ones are supported (a '
    cases = list(paths())
    assert len(cases) > 10
    for name, command in cases:
        with subtests.test(" ".join(command)):
            code, out, err = fptt_dist(*command)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert err.startswith(f"fptt-dist: {name}: {said}")
            assert err.endswith(": type a path without s3://\n")


def test_no_key_takes_a_remote_path(workplace: Path, fptt_dist: Command, subtests: pytest.Subtests) -> None:
    for command in (
        f"{ADD} run.dir={REMOTE}",
        f"{ADD} --dry-run data.root={REMOTE}",
        f"reproduce table3 --budget smoke run.dir={REMOTE}",
        f"sweep alpha_seeds run.dir={REMOTE}",
        f"sweep alpha_seeds sweep.config={REMOTE}",
        f"submit add_task --dry-run run.dir={REMOTE}",
        f"submit alpha_seeds --array --dry-run run.dir={REMOTE}",
        f"launch add_task --nproc 2 run.dir={REMOTE}",
    ):
        with subtests.test(command):
            code, out, err = fptt_dist(*command.split())
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f'"{REMOTE}" is a remote path' in err


def test_no_variable_takes_a_remote_path(workplace: Path, fptt_dist: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPTT_CLUSTER", REMOTE)
    code, out, err = fptt_dist("submit", "add_task", "--dry-run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith('fptt-dist: --cluster: "s3:/bucket/x" is a remote path')
