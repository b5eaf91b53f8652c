"""Another image in every turn, on a real engine: the learner computes the same log-probs."""

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.workers.data.images.folders import file_of, noise
from workers.data.images.rows import ImageReader
from workers.data.images.settings import ImageLimits
from workers.data.packing import pack
from workers.data.requests import GroupRequest, Sampling
from workers.data.shared_prefixes import ALONE
from workers.engines.model.policy_model import load_policy_model
from workers.engines.vllm.engine import VLLMSettings, engine_env
from workers.models.tiny_vision import build_tiny_vision
from workers.rollout.environments.contract import Outcome
from workers.rollout.limits import BoundedEnvironment, RolloutLimits
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerGroup

OF_PROMPT = file_of(noise(56, 56))
#: The picture that a sibling sees behind each of its turns.
LATER = {
    sibling: [file_of(noise(56 * (1 + turn), 56, seed=10 * sibling + turn)) for turn in (1, 2)]
    for sibling in range(4)
}
EXACT = 1e-5

pytestmark = pytest.mark.slow


class Looks:
    """Three turns; behind each of the first two a picture of the sibling's own."""

    async def play(self, task, session):
        sampled = []
        for file in (*LATER[task.sibling], None):
            sampled.append((await session.draw()).tokens)
            if file is not None:
                parts = [{"type": "image", "image": file}, {"type": "text", "text": "this?"}]
                await session.observe([{"role": "user", "content": parts}])
        return Outcome(reward=0.0, notes={"sampled": json.dumps(sampled)})


@pytest.fixture(scope="module", params=["qwen2_5_vl", "idefics3"])
def folder(request, tmp_path_factory):
    """A model of weights so large that a wrong position or pixel matters."""
    path = tmp_path_factory.mktemp("models") / request.param
    build_tiny_vision(path, architecture=request.param, seed=3)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def worker(folder, loop):
    settings = VLLMSettings(
        model_path=str(folder),
        kv_cache_memory_bytes=64 << 20,
        max_model_len=512,
        images=ImageLimits(max_pixels=64 * 28 * 28, max_per_prompt=3),
        engine_kwargs={"max_num_batched_tokens": 64, "max_num_seqs": 8},
    )
    looks = BoundedEnvironment(
        environment=Looks(), limits=RolloutLimits(max_turns=3, max_turn_tokens=6)
    )
    with pytest.MonkeyPatch.context() as patch:
        for key, value in engine_env(settings, 1).items():
            patch.setitem(os.environ, key, value)
        patch.setattr("ray.util.get_node_ip_address", lambda: "here")
        worker = RolloutWorker(
            run_id="test",
            settings=settings,
            max_prompt_tokens=64,
            environments={"": looks},
            reward_timeout_s=5.0,
        )
        loop.run_until_complete(worker.start(3, WorkerGroup("reward", [SimpleNamespace()])))
        yield worker
        loop.run_until_complete(worker.shutdown())


def group(name, prompt, images=()):
    return GroupRequest(
        group_id=name,
        prompt_uid=name,
        begun_version=3,
        dataset="d",
        prompt=[{"role": "user", "content": prompt}],
        ground_truth="",
        num_samples=4,
        seed=7,
        sampling=Sampling(max_tokens=300),
        images=images,
    )


@pytest.fixture(scope="module")
def record(worker, loop) -> pa.Table:
    """Eight rows: four siblings behind a picture, four behind a text."""

    async def run():
        await worker.submit([group("seen", "<image>a?", (OF_PROMPT,)), group("text", "b?")], False)
        batches = []
        while sum(batch.num_rows for batch in batches) < 8:
            batches.append((await worker.collect(60.0))[1])
        return batches

    table = pa.Table.from_batches(loop.run_until_complete(run()))
    assert table["outcome"].to_pylist() == ["scored"] * 8
    return table.sort_by([("group_id", "ascending"), ("rollout_id", "ascending")])


def test_recorded_ids_are_those_of_the_rendered_history(worker, record):
    encoder = worker._encoder
    for number, row in enumerate(record.drop_columns(["image_files"]).to_pylist()):
        prompt = group("", "<image>a?" if number < 4 else "b?").prompt
        files = [OF_PROMPT] * (number < 4)
        ids, _, fault = encoder.encode_shown(prompt, encoder.load(files) if files else ())
        assert fault is None
        sampled = json.loads(dict(row["reward_notes"])["sampled"])
        history = list(prompt)
        for turn, file in zip(sampled, [*LATER[number % 4], None], strict=True):
            before = len(ids)
            ids = [*ids, *turn]
            if file is None:
                continue
            # A text of one id stands for the turn, which is not rendered again.
            parts = [{"type": "image"}, {"type": "text", "text": "this?"}]
            said = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
            history += [said, {"role": "user", "content": parts}]
            files = [*files, file]
            whole, images, _ = encoder.encode_shown(history, encoder.load(files))
            assert len(whole) > before
            tail = whole[places_behind(whole, images, encoder) :]
            ids += tail[1:] if turn[-1] == tail[0] else tail
        assert row["tokens"] == ids
        assert sum(row["loss_mask"]) == sum(map(len, sampled))


def places_behind(whole, images, encoder):
    """Return where the last turn's stand-in ends: `x` before the last image and its header."""
    x = encoder.continuation("x")[0]
    last = images.spans[-1].offset
    return last - whole[:last][::-1].index(x)


def logprobs(folder, record, worker, *, files=None, rows=None, groups=None):
    """The learner's log-probs of some rows, packed into one batch."""
    policy = load_policy_model(folder).eval()
    settings = worker._encoder.image_settings
    images = ImageReader(settings).of_table(record)
    if files is not None:
        images = replace(images, patches_of=files(images))
    columns = {name: record[name] for name in ("tokens", "loss_mask")}
    batch = pack(columns, rows, groups=groups, images=images)
    with torch.no_grad():
        values = batch.split(policy.packed_outputs(batch))
    return values, batch


def worst(values, record, rows):
    found = []
    for value, row in zip(values, rows, strict=True):
        mask = np.array(record["loss_mask"][row].as_py())
        sampled = np.array(record["rollout_logprobs"][row].as_py())
        assert sampled[mask].max() < 0
        found.append(np.abs(value - sampled)[mask].max())
    return max(found)


def test_learner_and_engine_agree_over_all_turns_packed_with_rows_of_text(folder, record, worker):
    values, batch = logprobs(folder, record, worker)
    assert len(batch.images.digests) == 9
    difference = worst(values, record, range(8))
    print(f"largest difference of a log-prob: {difference:.2e}")
    assert difference < EXACT


def test_siblings_share_the_prompt_with_its_image_and_differ_behind_it(folder, record, worker):
    groups = np.array([0] * 4 + [ALONE] * 4)
    values, batch = logprobs(folder, record, worker, groups=groups)
    assert batch.num_computed < batch.num_tokens
    assert worst(values, record, range(8)) < EXACT


def test_another_image_in_a_later_turn_would_be_noticed(folder, record, worker):
    def swapped(images):
        """The pixels of another sibling's picture of the same size."""
        own, other = images.spans[0][1].digest, images.spans[1][1].digest
        return lambda digest: images.patches_of(other if digest == own else digest)

    rows = np.array([0])
    right, _ = logprobs(folder, record, worker, rows=rows)
    wrong, _ = logprobs(folder, record, worker, rows=rows, files=swapped)
    assert worst(right, record, rows) < EXACT
    first, second = (turn["end"] for turn in record["turns"][0].as_py()[:2])
    assert np.array_equal(wrong[0][:first], right[0][:first])  # before the picture: the same
    mask = np.array(record["loss_mask"][0].as_py())
    assert np.abs(wrong[0] - right[0])[first:][mask[first:]].max() > 1e-2
    assert second > first


def test_the_bytes_of_every_file_stand_in_the_record_once(record):
    files = record["image_files"].unify_dictionaries().combine_chunks()
    known = [OF_PROMPT, *(file for own in LATER.values() for file in own)]
    assert sorted(files.values.dictionary.to_pylist()) == sorted(known)
    assert [len(spans) for spans in record["images"].to_pylist()] == [3] * 4 + [2] * 4
