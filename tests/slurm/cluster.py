"""A SLURM of several nodes on this machine, started and stopped by the tests: real daemons, on loopback only.

Each daemon runs on a machine of its own, as far as it can tell: it has its own host name, its own /etc/hosts and its
own process ids. Whoever ends the first process of such a machine ends everything on it: the daemon, the job steps,
and what they left in sessions of their own.
"""

import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

CONTROLLER = "controller"
MUNGE = "munge"
PORTS = range(12000, 32000)  # below those that the system gives to whoever asks for any
ATTEMPTS = 4
START_SECONDS = 30.0
LINES = 15  # of each log, in a message
LEFT_BY_A_JOB = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SINFO_")
ALL_NODES = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t"]

# A node whose slurmd is gone is noticed after SlurmdTimeout or three times MessageTimeout, whichever is longer.
# What stays of a job that is to end is killed after KillWait; ended jobs stay visible for MinJobAge.
SETTINGS = """
ClusterName=tests
SlurmctldHost={controller}(127.0.0.1)
SlurmctldPort={port}
AuthInfo=socket={folder}/munge.socket,cred_expire=6
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n.spool
SlurmctldPidFile={folder}/{controller}.pid
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=5
KillWait=5
MinJobAge=3600
PartitionName=main Nodes=ALL Default=YES PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 State=UNKNOWN\n"

SPACES = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
# The shell stays as the first process, because that one has to collect the orphans of the others.
MACHINE = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && { "$@" & wait $!; }'


class PortTaken(Exception):
    """A daemon ended because another program was faster to take its port."""


class Cluster:
    """SLURM with the nodes node0, node1, …, from `start` to `stop`.

    Its partitions: main, the default; low, whose jobs give way to those of high and are requeued.

    Args:
        folder: for its settings, logs and state; short, since sockets live in it, and existing.
        nodes: how many.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.names = [f"node{index}" for index in range(nodes)]
        self._machines: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The variables for a program that is to use this SLURM, and that may itself run in a job of another."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_BY_A_JOB)}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Return when all nodes are idle."""
        try:
            self._start_munge()
            for _ in range(ATTEMPTS):
                with suppress(PortTaken):
                    return self._start_slurm()
                self._kill(CONTROLLER, *self.names)
            pytest.fail(f"in {ATTEMPTS} attempts, another program took a port before a daemon had it")
        except BaseException:  # an interruption too
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every machine, with all that runs on it; nothing is left when this returns."""
        self._kill(*self._machines)

    def command(self, *words: str, seconds: float = 30.0) -> str:
        """What a client command such as `scontrol show job 1` prints; the test fails when the command does."""
        done = self._run(words, seconds)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, *words: str) -> str:
        """The id of the job that `sbatch words…` submits."""
        return self.command("sbatch", "--parsable", *words).strip()

    def states(self, job: str) -> set[str]:
        """The states of a job's tasks in SLURM's long words: of one that is no array, one state."""
        return set(self.command("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").split())

    def state(self, job: str) -> str:
        """The state of a job that is no array, or of one task of an array, such as 7_0."""
        (state,) = self.states(job)
        return state

    def wait_for(self, job: str, states: set[str], seconds: float) -> None:
        """Return when a job is in one of `states`, and of an array all tasks are."""
        show = ["scontrol", "show", "job", job]
        self._wait(lambda: set() < self.states(job) <= states, seconds, f"job {job} to be {states}", show)

    def start_now(self, job: str) -> None:
        """Let a requeued job start without its wait, of cred_expire and a second."""
        time.sleep(
            2.0
        )  # in the second in which the start before was ended the new one would be refused, and the job fail
        self.command("scontrol", "update", f"JobId={job}", "StartTime=now")

    def cancel_all(self, seconds: float = 30.0) -> None:
        """Cancel every job, and return when all nodes are idle."""
        self.command("scancel", "--user=root")
        self._wait(self._idle, seconds, "all nodes to be idle", ALL_NODES)

    def node_state(self, name: str) -> str:
        """The state of a node in sinfo's short words, such as idle, alloc and down*; the star: it does not answer."""
        return self.command("sinfo", "--noheader", "--partition=main", f"--nodes={name}", "--format=%t").strip()

    def wait_for_node(self, name: str, states: set[str], seconds: float) -> None:
        """Return when a node is in one of `states`."""
        self._wait(lambda: self.node_state(name) in states, seconds, f"{name} to be {states}", ALL_NODES)

    def kill_node(self, name: str) -> None:
        """End a node as a power cut does: its slurmd, and everything that ran on it."""
        self._kill(name)

    def start_node(self, name: str) -> None:
        """Start a killed node again; the controller takes it back a moment later."""
        self._start_machine(name, "slurmd", "-D", "-N", name)

    def processes(self, name: str) -> dict[int, str]:
        """What runs on a node, or on the controller: the command lines by the process ids that this machine gives.

        On the node, and so for a job, the same processes have other ids.
        """
        space = _process_space(_first_process(self._machines[name]))
        found: dict[int, str] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if _process_space(int(entry.name)) == space:
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        return found

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        # --force: munged would refuse a folder that not everybody may enter.
        self._start_machine(MUNGE, "munged", "--foreground", "--force", *options)
        self._wait((self.folder / "munge.socket").is_socket, START_SECONDS, "munged's socket", ["ls", str(self.folder)])

    def _start_slurm(self) -> None:
        port, *ports = random.sample(PORTS, 1 + len(self.names))
        settings = SETTINGS.format(folder=self.folder, controller=CONTROLLER, port=port)
        nodes = [NODE.format(name=name, port=port) for name, port in zip(self.names, ports, strict=True)]
        (self.folder / "slurm.conf").write_text("".join(nodes) + settings)
        self._start_machine(CONTROLLER, "slurmctld", "-D", "-i")
        for name in self.names:
            self.start_node(name)

        self._wait(self._idle, START_SECONDS, "all nodes to be idle", ALL_NODES)

    def _start_machine(self, name: str, *words: str) -> None:
        hosts = self.folder / f"{name}.hosts"
        # Its own name comes first, or the machine would take localhost for its full name.
        others = " ".join(["localhost", socket.gethostname(), CONTROLLER, *self.names])
        hosts.write_text(f"127.0.0.1 {name}\n127.0.0.1 {others}\n::1 localhost\n")
        with (self.folder / f"{name}.out").open("ab") as output:
            self._machines[name] = subprocess.Popen(
                # The machines end with the tests, even when these are killed.
                ["setpriv", "--pdeathsig", "KILL", *SPACES, "sh", "-c", MACHINE, "sh", name, str(hosts), *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _kill(self, *names: str) -> None:
        for name in names:
            machine = self._machines.pop(name)
            try:
                os.kill(_first_process(machine), signal.SIGKILL)
            except (OSError, ValueError):  # it is only being started, or has ended by itself
                machine.kill()
            machine.wait()  # unshare ends when no process of its machine is left

    def _wait(self, ready: Callable[[], bool], seconds: float, what: str, story: list[str]) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = [name for name, machine in self._machines.items() if machine.poll() is not None]
            if any("Address already in use" in self._log(name) for name in ended):
                raise PortTaken
            if ended or time.monotonic() > deadline:
                done = self._run(story)
                logs = "\n".join(f"{name}:\n{self._log(name)}" for name in (MUNGE, CONTROLLER, *self.names))
                pytest.fail(f"waited {seconds:g} s for {what}, in vain\n{done.stdout}{done.stderr}{logs}")
            time.sleep(0.1)

    def _log(self, name: str) -> str:
        """The last lines of what the daemon of a machine wrote; before it knows its log, it prints."""
        files = [self.folder / f"{name}.{end}" for end in ("log", "out")]
        text = next((file.read_text() for file in files if file.is_file() and file.stat().st_size), "nothing")
        return "\n".join(text.splitlines()[-LINES:])

    def _idle(self) -> bool:
        return self._run(ALL_NODES).stdout.split() == [word for name in self.names for word in (name, "idle")]

    def _run(self, words: Sequence[str], seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
        environment = self.environment
        return subprocess.run(words, env=environment, input="", capture_output=True, text=True, timeout=seconds)


def _process_space(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def _first_process(machine: subprocess.Popen[bytes]) -> int:
    """The process that unshare started and now waits for."""
    return int(Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text())
