"""Groups on a real engine: aborted without a trace, stopped early, played in several turns."""

import asyncio
import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.filters import DynamicSampling
from algorithms.policy_losses.clipped import ClippedRatio
from workers.data.prompts import PromptEncoder
from workers.data.requests import GroupRequest, Sampling
from workers.data.trajectory import STOPPED_EARLY
from workers.engines.vllm.engine import (
    VLLMSettings,
    engine_env,
)
from workers.models.tiny import build_tiny
from workers.reward.base import RewardResult
from workers.rollout.early_stop import EarlyStop
from workers.rollout.endpoint.agent import Agent
from workers.rollout.environments.contract import Outcome
from workers.rollout.environments.function import Function
from workers.rollout.environments.guessing import Guessing
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.group_play import GroupPlay
from workers.rollout.limits import PROCESS, BoundedEnvironment, RolloutLimits
from workers.rollout.turn_texts import TurnTexts
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerGroup

ALGORITHM = Algorithm(
    name="test",
    advantage=GroupRelative(),
    policy_loss=ClippedRatio(),
    aggregation=TokenMean(),
    filters={"dynamic": DynamicSampling()},
)
SHORT, LONG = 40, 450


class Compare:
    """A reward worker that likes a response which comes after the ground truth."""

    def __init__(self):
        self.scored = []

    @property
    def score(self):
        return self

    async def remote(self, groups):
        self.scored += [sample for siblings in groups for sample in siblings]
        return [[self._compare(sample) for sample in siblings] for siblings in groups]

    def _compare(self, sample):
        better = sample.response > sample.ground_truth
        return RewardResult(outcome="scored", reward=float(better), parts={}, seconds=0.0)


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def rewards():
    return Compare()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def worker(folder, loop, rewards):
    settings = VLLMSettings(model_path=str(folder), kv_cache_memory_bytes=16 << 20)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in engine_env(settings, 1).items():
            patch.setitem(os.environ, key, value)
        patch.setattr("ray.util.get_node_ip_address", lambda: "here")
        worker = RolloutWorker(
            run_id="test",
            settings=settings,
            max_prompt_tokens=16,
            environments={"": BoundedEnvironment(environment=SingleTurn(), limits=RolloutLimits())},
            reward_timeout_s=5.0,
            early_stop=EarlyStop(settled=ALGORITHM.settled, min_samples=2),
        )
        loop.run_until_complete(worker.start(3, WorkerGroup("reward", [rewards])))
        yield worker
        loop.run_until_complete(worker.shutdown())


def request(name, *, max_tokens=LONG, ignore_eos=False, **settings):
    common = {
        "group_id": name,
        "prompt_uid": name,
        "begun_version": 1,
        "dataset": "d",
        "prompt": "12345=",
        "ground_truth": "",
        "num_samples": 4,
        "seed": 7,
        "sampling": Sampling(max_tokens=max_tokens, ignore_eos=ignore_eos),
    }
    return GroupRequest(**(common | settings))


async def running(worker):
    """Requests that the engine holds."""
    return worker._engine._live().output_processor.get_num_unfinished_requests()


async def until(worker, count):
    while await running(worker) != count:
        await asyncio.sleep(0.01)


def test_an_aborted_group_frees_its_slots_and_leaves_no_trace(worker, loop, rewards):
    async def run():
        slow = [request(name, ignore_eos=True) for name in ("slow", "slower")]
        await worker.submit(slow, False)
        await until(worker, 8)
        await worker.abort(["slow", "never begun"])
        left = await running(worker)
        await worker.abort(["slower"])
        free = await running(worker)
        await worker.submit([request("next", max_tokens=SHORT, ignore_eos=True)], False)
        collected, batch = await worker.collect(60.0)
        return left, free, collected, batch

    left, free, collected, batch = loop.run_until_complete(run())
    assert (left, free) == (4, 0)
    assert [meta.group_id for meta in collected.metas] == ["next"] * 4
    assert batch.num_rows == 4
    assert {meta.num_sampled for meta in collected.metas} == {SHORT}
    assert len(rewards.scored) == 4  # no aborted sample was scored, with 0 or otherwise
    assert worker._groups == {}


def test_a_group_that_finished_but_was_not_collected_can_be_aborted(worker, loop):
    async def run():
        both = [request("first", max_tokens=2), request("second", max_tokens=2)]
        await worker.submit(both, False)
        while worker._finished.qsize() < 2:
            await asyncio.sleep(0.01)
        await worker.abort(["first"])
        return (await worker.collect(5.0))[0]

    assert {meta.group_id for meta in loop.run_until_complete(run()).metas} == {"second"}


def test_siblings_stop_once_the_verdict_is_settled(worker, loop, rewards):
    """Of sixteen that end when they like, some are scored, differ, and spare the rest."""
    # About half of all texts come after "5".
    sixteen = {"num_samples": 16, "ground_truth": "5"}

    async def run(one):
        await worker.submit([one], False)
        return (await worker.collect(120.0))[0].metas

    whole = loop.run_until_complete(run(request("whole", **sixteen)))
    assert {meta.outcome for meta in whole} == {"scored"}
    before = len(rewards.scored)
    metas = loop.run_until_complete(run(request("stopped", may_stop_early=True, **sixteen)))
    scored = [meta for meta in metas if meta.outcome == "scored"]
    stopped = [meta for meta in metas if meta.outcome == STOPPED_EARLY]
    assert len(metas) == len(scored) + len(stopped) == 16
    assert stopped
    assert len({meta.reward for meta in scored}) > 1  # the verdict: they differ
    assert all(meta.reward is None and meta.finish_reason == "abort" for meta in stopped)
    assert len(rewards.scored) - before == len(scored)
    # A stopped sample is the beginning of the one that would have been.
    lengths = {meta.rollout_id.split("/")[1]: meta.num_sampled for meta in whole}
    assert all(m.num_sampled <= lengths[m.rollout_id.split("/")[1]] for m in stopped)
    assert loop.run_until_complete(running(worker)) == 0


@pytest.fixture(scope="module")
def merging(folder, tmp_path_factory):
    """The model's folder with another tokenizer of as many ids: 30 letters, and each before "<"."""
    ids = {token: number for number, token in enumerate(("<pad>", "<unk>", "<bos>", "<eos>"))}
    letters = "0123456789abcdefghijklmnopqrs<"
    ids |= {letter: len(ids) + number for number, letter in enumerate(letters)}
    ids |= {f"{letter}<": len(ids) + number for number, letter in enumerate(letters)}
    merges = [(letter, "<") for letter in letters]
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    other = tmp_path_factory.mktemp("models") / "merging"
    shutil.copytree(folder, other)
    tokenizer.save_pretrained(other)
    return other


class Talks:
    """Three turns of up to three tokens, each answered by "<", which merges with what is before."""

    async def play(self, task, session):
        texts = []
        while session.may_draw:
            turn = await session.draw(max_tokens=3)
            texts.append(turn.tokens)
            await session.observe([{"role": "user", "content": "<"}])
        return Outcome(reward=0.0, notes={"sampled": json.dumps(texts)})


def test_ids_stay_as_they_were_sampled_where_the_tokenizer_would_merge_them(
    worker, loop, rewards, folder, merging
):
    encoder = PromptEncoder(merging, 16)
    context = replace(
        worker._context,
        encoder=encoder,
        texts=TurnTexts(encoder),
        environments={
            "": BoundedEnvironment(environment=Talks(), limits=RolloutLimits(max_turns=3))
        },
    )
    talk = request("talk", prompt="01", num_samples=8, max_tokens=40)
    siblings = loop.run_until_complete(GroupPlay(talk, context).run())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    angle = encoder.continuation("<")
    merged = 0
    for one in siblings:
        turns = json.loads(one.reward_notes["sampled"])
        assert len(turns) == one.num_turns == 3
        expected = [*encoder.continuation("01"), *turns[0], *angle, *turns[1], *angle, *turns[2]]
        assert one.tokens == expected
        trained = [t for t, trains in zip(one.tokens, one.loss_mask, strict=True) if trains]
        assert trained == [token for turn in turns for token in turn]
        merged += encoder.continuation(encoder.decode(expected)) != expected
        with torch.no_grad():
            logits = model(torch.tensor([one.tokens])).logits[0, :-1].log_softmax(-1)
        learner = logits.gather(1, torch.tensor(one.tokens)[1:, None]).squeeze(1)
        mask = torch.tensor(one.loss_mask)[1:]
        engine = torch.tensor(one.rollout_logprobs)[1:]
        assert (learner - engine)[mask].abs().max() < 1e-5
    assert merged > 0  # rendered again, these rows would have other ids


# Knows OpenAI's completions and the rules of the game, and nothing of this project.
GUESSER = """
import json, os, re, urllib.request

task = json.load(open(os.environ["BALLAST_TASK"]))
history, hidden = task["prompt"], int(task["ground_truth"])
for turn in range(3):
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/completions",
        data=json.dumps({"model": "any", "prompt": history, "temperature": 0}).encode(),
        headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
    )
    said = json.load(urllib.request.urlopen(request))["choices"][0]["text"]
    found = re.search(r"[0-9]+", said)
    if found and int(found[0]) == hidden:
        break
    history += said + ("?" if not found else "<" if int(found[0]) > hidden else ">")
reward = float(bool(found) and int(found[0]) == hidden)
json.dump({"reward": reward}, open(os.environ["BALLAST_RESULT"], "w"))
"""


def test_a_program_over_http_plays_the_bits_of_the_environment(worker, loop, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    (tmp_path / "guesser.py").write_text(GUESSER)
    command = f"{sys.executable} -S {tmp_path / 'guesser.py'}"
    agent = Agent(command=command).prepare(worker._encoder.tokenizer)

    async def played(environment, hidden):
        # What is in the cache decides how a prompt is computed, to the last bit.
        await worker._engine._live().reset_prefix_cache()
        context = replace(
            worker._context,
            environments={
                "": BoundedEnvironment(
                    environment=environment, limits=RolloutLimits(max_turns=3, max_turn_tokens=4)
                )
            },
        )
        game = request(
            f"game {hidden}",
            prompt="0-6?",
            ground_truth=str(hidden),
            num_samples=1,
            sampling=Sampling(temperature=0.0, max_tokens=60),
        )
        (row,) = await GroupPlay(game, context).run()
        return row

    num_turns = []
    for hidden in (77, 2):  # the first is never found
        inside = loop.run_until_complete(played(Guessing(high=6), hidden))
        outside = loop.run_until_complete(played(agent, hidden))
        assert outside.outcome == "scored"
        for column in (
            *("tokens", "loss_mask", "rollout_logprobs", "weight_versions"),
            *("reward", "num_turns"),
        ):
            assert getattr(outside, column) == getattr(inside, column), column
        num_turns.append(inside.num_turns)
    assert num_turns[0] == 3


def test_a_process_that_ends_costs_its_rollout_and_changes_no_other(worker, loop):
    bounded = BoundedEnvironment(
        environment=Function(path="tests.workers.rollout.isolation.hostile.two_turns"),
        limits=RolloutLimits(max_turns=2, max_turn_tokens=8),
        isolation=PROCESS,
    ).prepared(worker._encoder.tokenizer)
    context = replace(worker._context, environments={"": bounded})

    async def played(name):
        await worker._engine._live().reset_prefix_cache()
        return await GroupPlay(request(name, ground_truth=name, max_tokens=20), context).run()

    calm, deadly, again = (loop.run_until_complete(played(n)) for n in ("calm", "deadly", "calm"))
    bounded.environment.close()
    assert [row.outcome for row in deadly] == [
        *("scored", "scored", "failed:environment:its process ended with exit code 3", "scored")
    ]
    assert (deadly[2].num_turns, deadly[2].reward) == (1, None)
    assert deadly[2].tokens == calm[2].tokens[: len(deadly[2].tokens)]
    for k in (0, 1, 3):
        assert deadly[k].tokens == calm[k].tokens
        assert deadly[k].num_turns == 2
        assert deadly[k].rollout_logprobs == pytest.approx(calm[k].rollout_logprobs, abs=1e-5)
    assert [row.tokens for row in again] == [row.tokens for row in calm]  # the engine lives
