"""A real Slurm of two nodes on one machine, for the tests of deploy/slurm.

Needs root and Debian's packages slurm-wlm and munge. Each node has two CPUs and two GPUs that are
empty files: Slurm hands them out as it does real ones, and nothing can compute on them.
"""

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")
CONF = """\
ClusterName=desk
SlurmctldHost={host}
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/ctld
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/ctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/ctld.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
MpiDefault=none
KillWait=5
DefMemPerNode=100
NodeName=n1 NodeHostname={host} Port={first} CPUs=2 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname={host} Port={second} CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Return what this machine lacks for a Slurm of its own, or an empty text."""
    if os.geteuid() != 0:
        return "a Slurm of two nodes needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    return ""


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@dataclass(frozen=True, kw_only=True)
class SlurmDesk:
    """Two running nodes, n1 and n2, and the variables by which Slurm's programs find them."""

    root: Path
    env: dict[str, str]

    def ask(self, *command: str, timeout_s: float = 60) -> str:
        """Run one of Slurm's programs and return what it prints."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=timeout_s, check=True
        )
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """Return a field of what Slurm says of a job, such as Restarts or TRES."""
        words = self.ask("scontrol", "show", "job", job).split()
        return next(word for word in words if word.startswith(f"{name}=")).split("=", 1)[1]

    def state(self, job: str) -> str:
        """Return Slurm's word for a job's state, such as RUNNING."""
        return self.field(job, "JobState")

    def stop(self) -> None:
        """End the daemons that `start` started, and return when they have ended."""
        daemons = [
            psutil.Process(pid)
            for file in self.root.glob("*.pid")
            if psutil.pid_exists(pid := int(file.read_text()))
        ]
        for daemon in daemons:
            daemon.terminate()
        _, alive = psutil.wait_procs(daemons, timeout=20)
        for daemon in alive:
            daemon.kill()


def start(root: Path) -> SlurmDesk:
    """Start a controller, two nodes and their munge, with every file below `root`.

    Raises:
        RuntimeError: the nodes are not idle after 60 s; names the logs.
    """
    for name in ("ctld", "n1", "n2"):
        (root / name).mkdir(parents=True)
    for k in range(2):
        (root / f"gpu{k}").touch()
    port, first, second = free_ports(3)
    host = socket.gethostname().split(".")[0]
    conf = root / "slurm.conf"
    conf.write_text(CONF.format(root=root, host=host, port=port, first=first, second=second))
    (root / "gres.conf").write_text(f"Name=gpu File={root}/gpu[0-1]\n")
    env = {**os.environ, "SLURM_CONF": str(conf)}
    nodes = (["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"])
    for command in (_munged(root), ["slurmctld"], *nodes):
        subprocess.run(command, env=env, check=True, timeout=60)
    desk = SlurmDesk(root=root, env=env)
    deadline = time.monotonic() + 60
    while desk.ask("sinfo", "--noheader", "--states=idle", "--format=%D") != "2":
        if time.monotonic() > deadline:
            desk.stop()
            raise RuntimeError(f"Slurm's two nodes are not idle after 60 s; see {root}/*.log")
        time.sleep(0.5)
    return desk


def _munged(root: Path) -> list[str]:
    """Return the command of a munged with a key, a socket and files of its own below `root`."""
    key = root / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    (root / "munge").mkdir(mode=0o755)
    return [
        "munged",
        "--force",  # its folder is not one that only root could have made
        f"--key-file={key}",
        f"--socket={root}/munge/socket",
        f"--pid-file={root}/munged.pid",
        f"--log-file={root}/munged.log",
        f"--seed-file={root}/munged.seed",
    ]
