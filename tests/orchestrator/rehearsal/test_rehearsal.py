"""Rehearsals: the driver's own code on simulated roles, against times worked out by hand."""

import dataclasses
import math

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.cli.parser import main
from orchestrator.fleet.pool import RolloutPool
from orchestrator.rehearsal.decoding import Decoder, DecodingSpeed, Siblings
from orchestrator.rehearsal.figures import figures
from orchestrator.rehearsal.run import Rehearsal, sequence_cost
from orchestrator.rehearsal.timeline import SimulatedTime
from orchestrator.rehearsal.workload import Workload
from workers.data.requests import GroupRequest, Sampling
from workers.worker_group import WorkerGroup

# 32 responses of 100 tokens to 8 prompts of 10, on 4 engines and 2 learner ranks.
CONSTANT = [
    "experiment=tiny",
    "algorithm=rloo",
    "rollout.num_engines=4",
    "rollout.max_model_len=512",
    "rollout.sampling.max_new_tokens=400",
    "rollout.samples_per_prompt=4",
    "rollout.max_num_seqs=64",
    "learner.num_ranks=2",
    "learner.token_budget=4096",
    "trainer.prompts_per_step=8",
    "trainer.updates_per_step=1",
    "trainer.total_steps=4",
    "rehearsal.num_prompts=32",
    "rehearsal.prompt_tokens=10",
    "rehearsal.response_tokens_median=100",
    "rehearsal.response_tokens_sigma=0",
    "rehearsal.decode_step_s=0.01",
    "rehearsal.decode_sequence_s=0.001",
    "rehearsal.decode_kv_token_s=0",
    "rehearsal.prefill_tokens_per_s=1000",
    "rehearsal.reward_s=0.5",
    "rehearsal.train_tokens_per_s=1000",
    "rehearsal.score_tokens_per_s=4000",
    "rehearsal.credit_tokens_per_s=35200",
    "rehearsal.update_s=1",
    "rehearsal.publish_s=0.4",
    "rehearsal.pause_s=0.1",
]
TAILED = [  # long tails, and 12 steps over an epoch of 96 prompts
    *CONSTANT,
    "trainer.total_steps=12",
    "rehearsal.num_prompts=96",
    "rehearsal.response_tokens_median=60",
    "rehearsal.response_tokens_sigma=1.2",
]


def rehearsal(folder, *overrides):
    raw, config = compose(overrides)
    algorithm = instantiate(raw.algorithm, _convert_="all")
    return Rehearsal(config, algorithm, folder), config


def test_an_algorithm_that_reads_parts_of_the_reward_is_rehearsed(tmp_path):
    run, _ = rehearsal(
        tmp_path,
        *CONSTANT,
        "algorithm/advantage=decoupled",
        "algorithm.advantage.weights={exact: 1, format: 0.2}",
        "trainer.total_steps=1",
    )
    assert len(run.run()) == 1


def test_a_synchronous_step_takes_what_its_parts_take(tmp_path):
    run, config = rehearsal(tmp_path, *CONSTANT, "schedule=sync")
    moments = run.run()
    # Each engine prefills 2 prompts of 10 tokens and decodes 8 responses of 100 tokens together.
    generate = 2 * 10 / 1000 + 100 * (0.01 + 8 * 0.001) + 0.5
    credit = 32 * 110 / 35200
    train = 16 * 110 / 1000 + 1
    step = generate + credit + train + 0.4
    assert moments[0].time_s == pytest.approx(step)
    assert [m.metrics["time/generate_s"] for m in moments] == pytest.approx([generate] * 4)
    assert [m.metrics["time/score_s"] for m in moments] == pytest.approx([credit] * 4)
    assert [m.metrics["time/train_s"] for m in moments] == pytest.approx([train] * 4)
    assert [m.metrics["time/publish_s"] for m in moments] == pytest.approx([0.4] * 4)
    found = figures(config, moments)
    assert found.step_s == pytest.approx(step)
    assert found.samples_per_h == pytest.approx(32 * 3600 / step)
    assert found.rollout_idle_frac == pytest.approx(1 - (generate - 0.5) / step)
    assert found.rollout_filled_frac == pytest.approx((generate - 0.5) / step * 8 / 64)
    assert found.learner_idle_frac == pytest.approx(generate / step)
    # The run's own accounting says the same.
    for name, seconds in {
        "rollout/generate": generate - 0.5,
        "learner/idle": generate,
        "learner/credit": credit,
        "learner/learn": train,
        "driver/generate": generate,
    }.items():
        share = moments[-1].metrics[f"bubble/{name}_frac"]
        assert share == pytest.approx(seconds / step), name
    assert (found.staleness_mean, found.staleness_max) == (0, 0)


def test_running_ahead_hides_the_shorter_half(tmp_path):
    moments = rehearsal(tmp_path, *CONSTANT, "schedule=one_step_off")[0].run()
    # Sampling 2.32 s, of which 0.5 s wait for rewards, ends while the learner works 3.26 s.
    assert [m.metrics["time/step_s"] for m in moments[1:]] == pytest.approx([3.26] * 3)
    assert [m.metrics["time/generate_s"] for m in moments[1:]] == pytest.approx([0] * 3)
    assert [m.metrics["staleness/max"] for m in moments] == [0, 1, 1, 1]


@pytest.mark.parametrize("schedule", ["sync", "one_step_off", "async"])
def test_no_prompt_trains_twice_and_none_too_late(tmp_path, schedule):
    run, config = rehearsal(tmp_path, *TAILED, f"schedule={schedule}")
    moments = run.run()
    bound = config.schedule.max_staleness
    assert max(m.metrics["staleness/max"] for m in moments) == bound
    fates = [run.ledger.status(epoch, row) for epoch in (0, 1) for row in range(96)]
    trained = [fate for fate in fates if fate.startswith("trained")]
    dropped = [fate for fate in fates if fate.startswith("dropped")]
    assert len(trained) == sum(m.metrics["groups/trained"] for m in moments) == 96
    assert len(dropped) == sum(m.metrics["groups/dropped"] for m in moments)
    assert [trained.count(f"trained:{step}") for step in range(1, 13)] == [8] * 12
    assert fates.count("in_flight") == run.ledger.counts()["in_flight"] == bound * 8
    if schedule == "sync":  # nothing is begun but what trains: one epoch, every prompt once
        assert all(fate.startswith("trained") for fate in fates[:96])


def test_more_running_ahead_is_never_slower(tmp_path):
    rates = {}
    for schedule in ("sync", "one_step_off", "async"):
        (tmp_path / schedule).mkdir()
        run, config = rehearsal(tmp_path / schedule, *TAILED, f"schedule={schedule}")
        rates[schedule] = figures(config, run.run()).samples_per_h
    assert rates["async"] >= rates["one_step_off"] > 1.2 * rates["sync"]


def test_over_sampling_does_not_wait_for_the_slowest(tmp_path):
    def generating_s(name, *overrides):
        (tmp_path / name).mkdir()
        run, _ = rehearsal(tmp_path / name, *TAILED, "schedule.order=finished", *overrides)
        moments = run.run()
        return sum(m.metrics["time/generate_s"] for m in moments), run, moments

    exact, _, _ = generating_s("exact")
    ahead, run, moments = generating_s("ahead", "schedule.oversample=1.5", "schedule.leftover=drop")
    assert ahead < 0.8 * exact
    assert sum(m.metrics["groups/trained"] for m in moments) == 96
    assert run.ledger.counts() == {"trained": 96, "dropped": 12 * 4, "in_flight": 0}
    again, run, _ = generating_s("again", "schedule.oversample=1.5", "schedule.leftover=again")
    assert again < exact
    assert run.ledger.counts() == {"trained": 96, "dropped": 0, "in_flight": 0}


def test_a_rehearsal_repeats_itself(tmp_path):
    def once(name):
        (tmp_path / name).mkdir()
        moments = rehearsal(tmp_path / name, *TAILED, "schedule=async")[0].run()
        return [(m.time_s, m.sampling_s, m.drawn_tokens, m.samples) for m in moments]

    assert once("first") == once("second")


@pytest.mark.parametrize("algorithm", ["ppo", "dapo", "grpo"])
def test_roles_that_the_algorithm_needs_take_their_time(tmp_path, algorithm):
    overrides = [f"algorithm={algorithm}", "rehearsal.solve_spread=0", "trainer.total_steps=2"]
    moments = rehearsal(tmp_path, *CONSTANT, *overrides)[0].run()
    credit, forward = 32 * 110 / 35200, 16 * 110 / 4000
    # A reference under grpo; under ppo values, which share the learner's devices; neither in dapo.
    passes = {"dapo": 0, "grpo": 1, "ppo": 1}[algorithm]
    assert moments[-1].metrics["time/score_s"] == pytest.approx(credit + passes * forward)
    # The critic's update takes its turn before the policy's.
    train = (16 * 110 / 1000 + 1) * (2 if algorithm == "ppo" else 1)
    assert moments[-1].metrics["time/train_s"] == pytest.approx(train)


def test_groups_that_teach_nothing_are_filtered_and_replaced(tmp_path):
    overrides = ["algorithm=dapo", "rehearsal.solve_spread=0.3333", "schedule.max_refill_rounds=50"]
    moments = rehearsal(tmp_path, *TAILED, *overrides)[0].run()
    assert all(m.metrics["groups/trained"] == 8 for m in moments)
    filtered = sum(m.metrics["groups/filtered"] for m in moments)
    # Rates p are uniform: E[p^4 + (1 - p)^4] = 2 / 5 of all groups agree, 64 of 160 for 96 that do
    # not, with a standard deviation of 10.
    assert 34 < filtered < 94


SPEED = DecodingSpeed(step_s=0.01, sequence_s=0.002, kv_token_s=0.0001, prefill_tokens_per_s=500.0)


def test_decoding_in_closed_form_is_decoding_step_by_step():
    decoder = Decoder(speed=SPEED, max_running=3)
    decoder.add(Siblings(prompt_tokens=5, lengths=[4, 9, 2, 6]), 0.0)
    ends = {}
    while (moment := decoder.next_end()) < math.inf:
        for _, number in decoder.finish(moment):
            ends[number] = moment
    # Token by token: a step takes 0.01 + 0.002 n + 0.0001 k, with k in the middle of the step.
    left, now = {0: 4, 1: 9, 2: 2}, 5 / 500
    want, drawn = {}, {0: 0, 1: 0, 2: 0, 3: 0}
    while left:
        context = sum(5 + drawn[number] for number in left) + len(left) / 2
        now += 0.01 + 0.002 * len(left) + 0.0001 * context
        for number in list(left):
            drawn[number] += 1
            left[number] -= 1
            if left[number] == 0:
                del left[number]
                want[number] = now
        if len(left) < 3 and drawn[3] == 0:
            left[3] = 6
    assert ends == pytest.approx(want)
    assert decoder.drawn == 21


def test_what_is_given_up_leaves_its_place_to_others():
    decoder = Decoder(speed=SPEED, max_running=2)
    slow, quick = (Siblings(prompt_tokens=5, lengths=[n, n]) for n in (1000, 10))
    decoder.add(slow, 0.0)
    decoder.add(quick, 0.0)
    decoder.remove(slow, 2.0)
    # Alone, as if begun at 2 s: a prompt of 5 tokens, then ten steps of two sequences.
    alone = 5 / 500 + 10 * (0.01 + 2 * 0.002 + 0.0001 * 10) + 0.0001 * 2 * 10**2 / 2
    assert decoder.next_end() == pytest.approx(2.0 + alone)
    assert len(decoder.finish(2.0 + alone)) == 2
    assert decoder.next_end() == math.inf


def test_a_pause_delays_what_runs_and_changes_its_weights():
    decoder = Decoder(speed=SPEED, max_running=2)
    group = Siblings(prompt_tokens=50, lengths=[10, 10, 10])
    decoder.add(group, 0.0)
    end = decoder.next_end()
    decoder.pause(3.0, 0.15, version=7)
    # Both contexts, prompt and what is drawn, are computed again.
    tokens = 2 * 50 + 2 * steps_until(0.15 - 50 / 500)
    assert decoder.next_end() == pytest.approx(end + 3.0 + tokens / 500)
    decoder.finish(decoder.next_end())
    assert group.versions == [0, 0, 7]


def steps_until(seconds):
    """Steps that two sequences of 50 tokens take in `seconds`: the root of the quadratic."""
    first, growth = 0.01 + 0.002 * 2 + 0.0001 * 100, 0.0001 * 2
    return (math.sqrt(first**2 + 2 * growth * seconds) - first) / growth


def request(seed, samples=64):
    return GroupRequest(
        group_id="0-0",
        prompt_uid="p",
        begun_version=0,
        dataset="d",
        prompt="",
        ground_truth=None,
        num_samples=samples,
        seed=seed,
        sampling=Sampling(max_tokens=2000),
    )


def test_lengths_have_the_given_median_spread_and_cap():
    _, config = compose(["rehearsal.response_tokens_median=500", "rehearsal.sibling_share=0"])
    work = Workload(settings=config.rehearsal)
    lengths = sorted(tokens for seed in range(200) for tokens in work.lengths(request(seed)))
    count = len(lengths)
    assert 480 < lengths[count // 2] < 520
    assert lengths[-1] == 2000
    # ln(2000 / 500) / 1.2 = 1.155 deviations: 12.4 % of a normal variable lie beyond.
    assert 0.11 < lengths.count(2000) / count < 0.14
    assert work.lengths(request(3)) == work.lengths(request(3)) != work.lengths(request(4))


def test_siblings_share_what_they_are_told_to():
    _, config = compose([])
    alike = Workload(settings=dataclasses.replace(config.rehearsal, sibling_share=1.0))
    assert len(set(alike.lengths(request(1)))) == 1
    surely = dataclasses.replace(config.rehearsal, solve_spread=1.0)
    for seed in range(20):
        assert len(set(Workload(settings=surely).rewards(request(seed)))) == 1


def test_events_happen_in_order_and_time_moves_only_by_waiting():
    timeline, seen = SimulatedTime(), []
    for moment in (3.0, 1.0, 2.0, 1.0):
        timeline.at(moment, lambda moment=moment: seen.append((moment, timeline.now)))
    assert timeline.now == 0.0
    timeline.run_until(2.5)
    assert (seen, timeline.now) == ([(1.0, 1.0), (1.0, 1.0), (2.0, 2.0)], 2.5)
    timeline.run_while(lambda: True, limit=10.0)
    assert (seen[-1], timeline.now) == ((3.0, 3.0), 10.0)


def test_heartbeats_of_a_large_pool_are_rarer():
    def heartbeat_s(engines):
        group = WorkerGroup("rollout", range(engines))
        return RolloutPool(group, silence_s=120.0, together=False).heartbeat_s

    assert heartbeat_s(2) == heartbeat_s(100) == 5.0  # seconds
    assert heartbeat_s(512) == 25.6  # twenty a second
    assert heartbeat_s(4000) == 30.0  # a quarter of the silence that is allowed


def test_a_sequence_costs_what_the_models_sizes_say():
    _, config = compose(["model=qwen25_7b"])
    cost = sequence_cost(config)
    assert cost.quadratic == pytest.approx(28 * 3584 / 7.615e9, rel=1e-3)


def test_the_command_compares_schedules_on_divided_gpus(capsys):
    arguments = [*CONSTANT, "rollout.num_engines=8", "learner.num_ranks=4"]
    assert main(["rehearse", "--compare", "--ratios", "1,5", *arguments]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {name}", pair]
        for pair in ("6 : 6", "10 : 2")
        for name in ("sync", "one_step_off", "async")
    ]


def test_the_command_shows_every_step(capsys):
    assert main(["rehearse", *CONSTANT, "schedule=one_step_off"]) == 0
    printed = capsys.readouterr().out
    assert "| 4 | 0.0 | 0.1 | 2.8 | 0.4 | 3.3 | 8 | 0 | 1.00, 1 |" in printed
    advice = printed.split("bubbles: ")[1].splitlines()[0]
    assert advice.startswith("rollout engines idle")
    assert "the learner never is: add learner ranks (learner.num_ranks, now 2)" in advice
    assert "peak memory" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "--ratios", "1,0"], "'0' is not a positive number"),
        (["--compare", "--ratios", "1,a"], "'a' is not a positive number"),
        (["cluster=gpu_8_colocated"], "turns on shared GPUs are not rehearsed"),
        (["rehearsal.pause_s=9"], "is part of rehearsal.publish_s"),
        (["rehearsal.solve_rate=1.5"], "rehearsal.solve_rate=1.5: at most 1"),
        (["rehearsal.train_tokens_per_s=0"], "must be positive"),
    ],
)
def test_what_cannot_be_rehearsed_is_named(arguments, message, capsys):
    assert main(["rehearse", "experiment=tiny", *arguments]) == 2
    assert message in capsys.readouterr().err
