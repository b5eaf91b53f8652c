"""The parts of the comparison that need no run: rewards, jobs, the plain loop's loss, tables."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from algorithms.inputs import LossInputs
from conf.compose import compose
from orchestrator.planning.sources import Sources
from tests.bench.programs.outcomes import GIB, Outcome, append, curve, draw, middle, read, table
from tests.bench.programs.rewards import exact, numbers, positions
from tests.bench.programs.usage import Usage, descendants, read_stat
from tests.bench.programs.works import ALIKE, STEPS, job, row, works
from workers.data.prompts import PromptSet
from workers.models.tiny import build_tiny
from workers.reward.base import RewardSample
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.positions import Positions
from workers.tasks.digits import build_digits

HERE = Path(__file__).parent


@pytest.fixture
def loop(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))  # a program finds its neighbours so
    import plain_loop

    return plain_loop


def outcome(**changes):
    values = {
        "work": "a",
        "program": "TRL",
        "round": 1,
        "threads": 2,
        "steps": 3,
        "warm_up": 1,
        "start_s": 9.0,
        "seconds": (20.0, 18.0, 19.0),
        "tokens": (2351, 2340, 2300),
        "rewards": (0.1, 0.6, 0.9),
        "core_s": 36.0,
        "peak_bytes": 5 * GIB,
        "load": 1.5,
    }
    return Outcome(**(values | changes))


@pytest.mark.parametrize(
    ("response", "truth"),
    [("8\n1+1=", "8"), (" 8 ", "8"), ("80", "8"), ("Yes\n", "yes"), ("", "8")],
)
def test_exact_is_the_scorer_of_that_name(response, truth):
    sample = RewardSample(prompt="3+5=", response=response, ground_truth=truth)
    assert exact(response, truth) == Exact(stop_at="\n")(sample)


@pytest.mark.parametrize("response", ["12345", "12845", "123456", "1", ""])
def test_positions_is_the_scorer_of_that_name(response):
    sample = RewardSample(prompt="12345>", response=response, ground_truth="12345")
    assert positions(response, "12345") == Positions()(sample)["reward"]


def test_numbers_are_compared_by_place_and_more_of_them_is_worse():
    assert numbers("13 16 20", "13 16 19 22") == 2 / 4
    assert numbers("13 16 19 22 25", "13 16 19 22") == 4 / 5
    assert numbers("13 16 19 22\nCount on", "13 16 19 22") == 1.0


def test_a_row_counts_on_by_its_step():
    assert row(10, 3) == (
        "Count on from 10 by 3:",
        "13 16 19 22 25 28 31 34 37 40 43 46 49 52 55 58",
    )
    assert max(STEPS) * 16 + 99 < 1000  # three digits at most: 64 tokens hold sixteen numbers


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_work_composes_and_its_job_has_the_sizes_of_the_run(name, tmp_path):
    work = works(tmp_path / "rows")[name]
    _, config = compose([*work.overrides, *ALIKE])
    prompts = PromptSet(
        works(tmp_path / "rows")["b"].overrides[2].partition("=")[2],
        prompt_column="prompt",
        ground_truth_column="ground_truth",
    )
    sources = Sources(model_path=tmp_path, critic_path=tmp_path, train=prompts, heldout=None)
    made = job(work, config, sources, steps=7)
    sequences = made["prompts_per_step"] * made["samples"]
    assert (made["steps"], made["clip"], made["temperature"]) == (7, 0.2, 1.0)
    assert sequences == {"a": 128, "b": 64, "c": 256}[name]
    assert sequences % made["micro_batch"] == 0
    assert made["entropy"] == (0.05 if name == "c" else 0.0)
    assert made["lr"] == (1e-3 if name == "c" else 2e-5)
    assert made["prompts"] == str(tmp_path / "rows" / "rows.parquet")
    assert prompts[0].prompt.count("\n") == 2
    assert len(prompts[0].ground_truth.split()) == 16


def test_a_setting_that_the_others_lack_is_refused(tmp_path):
    work = works(tmp_path)["c"]
    _, config = compose([*work.overrides, *ALIKE, "rollout.sampling.top_p=0.9"])
    with pytest.raises(ValueError, match=r"work c: rollout.sampling.top_p=0.9 must be 1.0"):
        job(work, config, None, steps=7)


def test_advantages_are_whitened_within_a_group(loop):
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 3.0, 3.0, 3.0, 3.0])
    # the first group's mean is 0.5, its standard deviation sqrt(4 * 0.25 / 3) = 0.577
    expected = torch.tensor([0.866, -0.866, 0.866, -0.866, 0, 0, 0, 0])
    assert torch.allclose(loop.advantages_of(rewards, 4), expected, atol=1e-3)


def test_a_response_trains_up_to_its_first_end(loop):
    responses = torch.tensor([[5, 2, 2, 7], [5, 6, 7, 8], [2, 5, 5, 5]])
    mask = loop.response_mask(responses, torch.tensor([2, 9]))
    assert mask.tolist() == [
        [True, True, False, False],
        [True, True, True, True],
        [True, False, False, False],
    ]


def test_the_plain_loop_has_ballasts_gradient(loop):
    raw, _ = compose(["experiment=tiny", *ALIKE])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 11, generator=generator, requires_grad=True)  # [B, R, V]
    responses = torch.randint(0, 11, (3, 4), generator=generator)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    advantages = torch.tensor([1.2, -0.7, 0.4])
    loss = loop.loss_of(logits, responses, mask, advantages, entropy=0.05) / 3
    (plain,) = torch.autograd.grad(loss, logits)

    log_p = logits.log_softmax(-1)
    logprobs = log_p.gather(-1, responses[..., None])[..., 0].flatten()  # [N]
    entropy = -(log_p.exp() * log_p).sum(-1).flatten()
    found = algorithm.token_loss(
        LossInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),
            advantages=advantages.repeat_interleave(4),
            loss_mask=mask.flatten(),
            sequence_ids=torch.arange(3).repeat_interleave(4),
            entropy=entropy,
            old_entropy=entropy.detach(),
        )
    )
    weights = (1.0 / 3 / mask.sum(1)).repeat_interleave(4) * mask.flatten()  # sequence_mean
    total = sum((term * weights).sum() for term in found.terms.values())
    (ours,) = torch.autograd.grad(total, logits)
    assert torch.allclose(plain, ours, atol=1e-7)


def test_the_plain_loop_trains_a_small_model(loop, tmp_path):
    model = build_tiny(tmp_path / "model")
    prompts = build_digits(tmp_path / "data", task="copy", length=5) / "train.parquet"
    work = works(tmp_path / "rows")["c"]
    _, config = compose([*work.overrides, *ALIKE])
    train = PromptSet(prompts, prompt_column="prompt", ground_truth_column="ground_truth")
    sources = Sources(model_path=model, critic_path=model, train=train, heldout=None)
    found = loop.train(
        job(work, config, sources, steps=2) | {"prompts_per_step": 2, "micro_batch": 8}
    )
    assert len(found["ends"]) == len(found["rewards"]) == 2
    assert found["first_step"] < found["ends"][0] < found["ends"][1]
    # 16 samples of 6 prompt tokens ("01234>") and 1 to 5 tokens each
    assert all(16 * 7 <= tokens <= 16 * 12 for tokens in found["tokens"])


def test_medians_and_the_way_to_a_reward():
    one = outcome()
    assert one.step_s == 18.5
    assert one.tokens_per_s == 4640 / 37
    assert one.seconds_to(0.9, from_start=False) == 57.0
    assert one.seconds_to(0.9, from_start=True) == 66.0
    assert one.seconds_to(0.95, from_start=True) is None
    assert middle([2.0, 1.0, 4.0], 1) == "2.0 (1.0-4.0)"
    assert curve([0.0, 0.2, 0.4, 0.6], 2) == "0.10 0.50"


def test_a_table_compares_with_its_first_program(tmp_path):
    file = tmp_path / "results" / "peers.jsonl"
    assert read(file) == []
    ours = outcome(program="Ballast", seconds=(9.0, 9.25, 9.25), core_s=18.0, phases={"train": 3.0})
    never = outcome(round=2, rewards=(0.1, 0.2, 0.3), seconds=(20.0, 20.0, 20.0))
    for one in (outcome(), never, ours):
        append(file, one)
    assert read(file) == [outcome(), never, ours]
    lines = table(read(file), ("Ballast", "TRL", "vLLM alone")).splitlines()
    assert lines[2] == "| Ballast | 1 | 9.25 | 1.00 | 18.00 | 1.00 | 251 | 36 | 28 | 5.0 |"
    assert lines[3] == (
        "| TRL | 2 | 19.25 (18.50-20.00) | 2.08 | 36.00 (36.00-36.00) | 2.00 | 121 (116-125) "
        "| in 1 of 2 | in 1 of 2 | 5.0 (5.0-5.0) |"
    )
    assert len(lines) == 4


def test_curves_are_drawn(tmp_path):
    draw(
        [outcome(), outcome(program="Ballast")],
        {"a": "quickstart", "b": "rows"},
        tmp_path / "p.png",
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_descendants_are_children_and_theirs():
    assert descendants(1, {1: 0, 2: 1, 3: 2, 9: 0}) == {2, 3}
    parent, used_s = read_stat()[os.getpid()]
    assert parent == os.getppid()
    assert 0 < used_s <= time.process_time() + 0.02  # a tick of each kind of time


def test_memory_and_time_of_a_child_are_seen_when_it_has_ended_too():
    hold = "import sys; held = b'x' * (100 << 20); print(len(held), flush=True); sys.stdin.read()"
    usage = Usage()
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin and child.stdout
        child.stdout.readline()
        usage.sample()
        child.stdin.close()
    usage.sample()
    assert usage.peak_bytes > 100 << 20
    assert usage.used_s[1] == usage.used_s[0] > 0


def test_time_between_two_samples_lies_on_a_line():
    usage = Usage()
    usage.times, usage.used_s = [10.0, 12.0], [4.0, 8.0]
    assert [usage.used_until(moment) for moment in (9, 10, 11, 12, 13)] == [4, 4, 6, 8, 8]
