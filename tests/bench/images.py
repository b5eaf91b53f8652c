"""Seconds and memory of a training step on siblings that show one image.

Eight rows behind one image prompt, as a group of a run is; the vision tower is frozen. Three ways
to compute the same gradient:

    alone    every row computes the prompt, and the tower computes the image for every row
    tower    every row computes the prompt, the tower computes the image once
    shared   prompt and image are computed once

Prints CPU seconds of the step and the growth of the process's peak memory (Linux).

    python tests/bench/images.py --tokens 234 494 1230
"""

import argparse
import ctypes
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import Reinforce
from workers.data.images import ImageSpan, read_image_settings
from workers.data.images.packed import RowImages
from workers.data.packing import PackedBatch, pack
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
from workers.models.tiny_vision import build_tiny_vision

WAYS = ("alone", "tower", "shared")
TEXT = 32  # tokens of the question behind the image
MIB = 2**20


def batch_of(folder: Path, way: str, *, tokens: int, siblings: int, response: int) -> PackedBatch:
    """Pack siblings behind one image of `tokens` image tokens."""
    settings = read_image_settings(folder, max_pixels=None)
    assert settings is not None
    rows = next(n for n in range(int(tokens**0.5), 0, -1) if tokens % n == 0)
    grid = (1, 2 * rows, 2 * tokens // rows)
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (settings.num_rows(grid), 1176), dtype=np.uint8)
    question = rng.integers(4, 60, TEXT).tolist()
    prompt = [5, 6, *[settings.image_token_id] * tokens, *question]
    answers = rng.integers(4, 60, (siblings, response)).tolist()
    mask = [False] * len(prompt) + [True] * response
    spans = [
        [ImageSpan(offset=2, length=tokens, grid=grid, digest=str(row if way == "alone" else 0))]
        for row in range(siblings)
    ]
    return pack(
        {
            "tokens": pa.array([prompt + answer for answer in answers], pa.list_(pa.int32())),
            "loss_mask": pa.array([mask] * siblings, pa.list_(pa.bool_())),
            "advantages": pa.array([[1.0] * len(mask)] * siblings, pa.list_(pa.float32())),
        },
        weights={"policy": np.full(siblings, 1.0 / siblings / response)},
        groups=[0] * siblings if way == "shared" else None,
        images=RowImages(spans=spans, settings=settings, patches_of=lambda digest: patches),
    )


def peak_growth_of(step: object) -> tuple[float, float]:
    """Return CPU seconds of a step, and by how many bytes the peak of the memory grew."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = _status("VmRSS"), time.process_time()
    step()  # type: ignore[operator]
    return time.process_time() - began, _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every way for every size of image, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[234, 494, 1230])
    parser.add_argument("--siblings", type=int, default=8)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    algorithm = Algorithm(
        name="plain",
        advantage=GroupRelative(),
        policy_loss=Reinforce(),
        aggregation=TokenMean(),
    )
    print(f"{'image tokens':>12} {'way':>7} {'tokens':>7} {'CPU s':>7} {'MiB':>7} {'loss':>12}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = build_tiny_vision(
            Path(scratch) / "model",
            hidden_size=given.hidden,
            num_layers=4,
            vision_layers=4,
            max_position_embeddings=4096,
        )
        for tokens in given.tokens:
            for way in WAYS:
                engine = PolicyEngine(
                    ZeroSettings(model=str(folder), optimizer=OptimizerSettings(lr=1e-6))
                )
                batch = batch_of(
                    folder,
                    way,
                    tokens=tokens,
                    siblings=given.siblings,
                    response=given.response,
                )
                assert batch.images is not None
                other = tuple(f"other {digest}" for digest in batch.images.digests)
                warm = replace(batch, images=replace(batch.images, digests=other))
                engine.train([[warm]], algorithm, temperature=1.0)
                losses: list[float] = []

                def step(
                    engine: PolicyEngine = engine,
                    batch: PackedBatch = batch,
                    losses: list[float] = losses,
                ) -> None:
                    done = engine.train([[batch]], algorithm, temperature=1.0)
                    losses.append(done.updates[0].metrics["loss"])

                seconds, growth = peak_growth_of(step)
                print(
                    f"{tokens:>12} {way:>7} {batch.num_computed:>7} {seconds:>7.2f} "
                    f"{growth / MIB:>7.0f} {losses[0]:>12.6f}"
                )
                engine.close()


if __name__ == "__main__":
    main()
