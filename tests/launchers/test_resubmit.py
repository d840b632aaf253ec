"""The sbatch command that a job of slurm/ prints to resume it: with its size and place, as it can be typed."""

import shlex
import sys
from pathlib import Path

import pytest

from fptt_dist.launchers.slurm.resubmit import main, sbatch_command

TRAIN = "slurm/train.sbatch"
# What SLURM 22.05 sets in a batch script, and shows of its job.
ENVIRON = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_SUBMIT_DIR": "/home/a user",
}
SHOWN = """JobId=7 JobName=fptt
   UserId=user(1000) Account=(null) QOS=(null)
   RunTime=00:00:05 TimeLimit={limit} TimeMin=N/A
   Command={file} {words}
   WorkDir={folder}
"""
CONFIG = ["add_task", "optimizer.betas=[0.8, 0.95]"]


def shown(
    file: str = "/nowhere/x.sbatch", words: list[str] = CONFIG, folder: str = "/home/a user", limit: str = "8:00:00"
) -> str:
    return SHOWN.format(file=file, words=" ".join(words), folder=folder, limit=limit)


def test_the_size_of_the_job() -> None:
    cases: list[tuple[dict[str, str], str]] = [
        ({}, ""),
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_GPUS_PER_NODE": "h100:4"}, " --cpus-per-task=6 --gpus-per-node=h100:4"),
        ({"SLURM_GPUS_ON_NODE": "4"}, " --gpus-per-node=4"),
        ({"SLURM_GPUS_ON_NODE": "0"}, ""),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS": "8"}, " --gpus=8"),
        ({"SLURM_MEM_PER_CPU": "2000"}, " --mem-per-cpu=2000"),
    ]
    for more, options in cases:
        line = sbatch_command(TRAIN, CONFIG, {**ENVIRON, **more}, shown())
        size = f"--nodes=2 --ntasks-per-node=4{options} --partition=gpu --time=8:00:00"
        assert line == f"sbatch {size} {TRAIN} add_task 'optimizer.betas=[0.8, 0.95]' resume=auto"


def test_places_variables_and_words(tmp_path: Path) -> None:
    more = {"SLURM_JOB_ACCOUNT": "lab", "SLURM_JOB_QOS": "high", "NPROC": "2", "FPTT_PYTHON": "/an env/python"}
    words = [*CONFIG, "resume=never"]
    line = sbatch_command(TRAIN, words, {**ENVIRON, **more}, shown(words=words, limit="1-00:00:00", folder="/scratch"))
    assert line.startswith("FPTT_PYTHON='/an env/python' NPROC=2 sbatch --nodes=2 ")
    assert " --account=lab --qos=high --time=1-00:00:00 --chdir=/scratch slurm/train.sbatch " in line
    assert shlex.split(line)[-3:] == [*CONFIG, "resume=auto"]


def test_the_file_is_where_it_was_submitted_from(tmp_path: Path) -> None:
    """The script that a job runs is a copy of SLURM's, somewhere else."""
    file = tmp_path / "my jobs" / "train it.sbatch"
    file.parent.mkdir()
    file.touch()
    inside = {**ENVIRON, "SLURM_SUBMIT_DIR": str(tmp_path)}
    for environ, path in ((inside, "my jobs/train it.sbatch"), (ENVIRON, str(file))):
        words = shlex.split(sbatch_command(TRAIN, CONFIG, environ, shown(str(file))))
        assert words[-4:] == [path, *CONFIG, "resume=auto"]
    # SLURM before 22.05 shows the file alone, and nothing of a script from standard input.
    assert "train it.sbatch' add_task" in sbatch_command(
        TRAIN, CONFIG, inside, shown(str(file), []).replace(" \n", "\n")
    )
    assert f" {TRAIN} add_task" in sbatch_command(TRAIN, CONFIG, inside, "")


def test_a_sweep_resumes_by_its_own_option() -> None:
    words = [".venv/bin/fptt-dist", "sweep", "s.yaml", "run.dir=a b"]
    line = sbatch_command("slurm/sweep.sbatch", words, {**ENVIRON, "SWEEP_WAIT": "600"}, shown(words=words))
    assert line.startswith("SWEEP_WAIT=600 sbatch --nodes=2 ")
    assert line.endswith(" slurm/sweep.sbatch .venv/bin/fptt-dist sweep s.yaml 'run.dir=a b' --resume")


def test_a_mistake_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["resubmit", TRAIN, "add_task", "optimizer.lrr=1"])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith("fptt-dist: optimizer.lrr: unknown key; did you mean optimizer.lr?")
    assert said.err.count("\n") == 1
