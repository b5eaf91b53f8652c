"""Run a scoring process: read groups of samples from the parent, write one result line for each.

The module is the script of the process, and imports the standard library only, until the parent has
sent the import path. Prints of a scorer go to stderr; a process group of its own lets the parent
end all processes that a scorer started; the process ends itself when the parent is gone. Frames
come in on stdin, JSON lines go out on the original stdout. Time limits per sample are the parent's.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

HEADER = struct.Struct("<Q")  # length of the pickled frame that follows


def main() -> None:
    """Serve until the parent closes the pipe."""
    # Descriptors 0 and 1 are the scorer's from here on: a scorer must not write results of its own.
    requests = os.fdopen(os.dup(0), "rb")
    results = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = _read_frame(requests)
    if first is None:
        return
    threading.Thread(target=_end_with_parent, args=(first["parent"],), daemon=True).start()
    sys.path[:] = first["sys_path"]
    try:
        scorer = pickle.loads(first["scorer"])
        keep_in = getattr(scorer, "keep_in", None)
        if keep_in is not None and first["folder"] is not None:
            keep_in(first["folder"])
        prepare = getattr(scorer, "prepare", None)
        if prepare is not None:
            prepare()
    except BaseException as error:
        _write(results, ["error", f"{type(error).__name__}: {error}"])
        return
    _write(results, ["ready", ""])
    _serve(requests, results, scorer, first["timeout_s"])


def _serve(requests: BinaryIO, results: int, scorer: Any, timeout_s: float) -> None:
    from workers.reward.base import RewardSample, score_group, takes_batch, takes_group

    while (frame := _read_frame(requests)) is not None:
        _limit_cpu(timeout_s * len(frame))
        groups = [
            [
                RewardSample(
                    prompt=prompt,
                    response=response,
                    ground_truth=ground_truth,
                    columns=columns,
                    messages=messages,
                )
                for prompt, response, ground_truth, columns, messages in group
            ]
            for group in frame
        ]
        if takes_batch(scorer) and not takes_group(scorer):
            scores = iter(score_group(scorer, [sample for group in groups for sample in group]))
            for group in groups:
                _write_results(results, [next(scores) for _ in group])
            continue
        for group in groups:
            _write_results(results, score_group(scorer, group))


def _write_results(descriptor: int, scores: list[Any]) -> None:
    _write(
        descriptor,
        [
            [each.outcome, each.reward, dict(each.parts), dict(each.notes), each.seconds]
            for each in scores
        ],
    )


def _read_frame(stream: BinaryIO) -> Any:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = stream.read(length)
    return pickle.loads(body) if len(body) == length else None


def _write(descriptor: int, message: list[Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _limit_cpu(seconds: float) -> None:
    """Let the kernel end a loop that holds the interpreter lock after the parent has died."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    allowed = usage.ru_utime + usage.ru_stime + (seconds + 60.0) * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(allowed) + 1
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    main()
