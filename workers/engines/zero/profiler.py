"""Traces of one rank while it trains, for Perfetto and for PyTorch's memory viewer.

From `RankProfiler(...)` to `finish` every operator, every kernel and the forward pass of every
module is recorded, the modules under their names in the model; then the files are written. Nothing
of it exists outside that time: the spans are hooks that are put on and taken off. Runs in a
learner's rank.

It does not choose steps and ranks (`orchestrator/telemetry/profiling.py` does), and it is no clock:
a recorded step is slower than others.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity

TRACE_SUFFIX = ".trace.json"
MEMORY_SUFFIX = ".memory.pickle"
MEMORY_EVENTS = (
    1_000_000  # allocations and frees of a snapshot; each costs kilobytes of host memory
)


class RankProfiler:
    """Recorder of one rank, from its construction on.

    Args:
        module: the model; spans are named after the classes and names of its submodules.
        device: where it computes. Kernels and the memory snapshot need a CUDA device.
        target: the files' path without suffix; its folder exists.
        memory: also record allocations, in the trace, and on CUDA as a snapshot with stacks.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, target: Path, *, memory: bool
    ) -> None:
        self._target, self._on_cuda = target, device.type == "cuda"
        self._snapshot = memory and self._on_cuda
        self._open: list[record_function] = []
        self._hooks: list[Any] = []
        for name, part in module.named_modules():
            self._add_span(part, f"{type(part).__name__} {name}".strip())
        activities = [ProfilerActivity.CPU]
        if self._on_cuda:
            activities.append(ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(
            activities=activities, record_shapes=True, profile_memory=memory
        )
        if self._snapshot:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self._profile.start()

    def finish(self) -> None:
        """Stop recording and write `<target>.trace.json`, and `<target>.memory.pickle` on CUDA."""
        if self._on_cuda:
            torch.cuda.synchronize()
        self._profile.stop()
        for hook in self._hooks:
            hook.remove()
        self._profile.export_chrome_trace(f"{self._target}{TRACE_SUFFIX}")
        if self._snapshot:
            torch.cuda.memory._dump_snapshot(f"{self._target}{MEMORY_SUFFIX}")
            torch.cuda.memory._record_memory_history(enabled=None)

    def _add_span(self, part: nn.Module, label: str) -> None:
        def enter(*_: Any) -> None:
            span = record_function(label)
            span.__enter__()
            self._open.append(span)

        def leave(*_: Any) -> None:
            self._open.pop().__exit__(None, None, None)

        self._hooks.append(part.register_forward_pre_hook(enter))
        self._hooks.append(part.register_forward_hook(leave, always_call=True))
