"""Who holds which group: least loaded first, never beyond a limit, nothing lost or held twice."""

import random

from orchestrator.fleet.concurrency import Concurrency
from orchestrator.fleet.routing import Routing
from workers.data.requests import EngineLoad, GroupRequest, Sampling

LIMIT = Concurrency(limit=8, lowest=4, highest=64, increase=4, decrease=0.5)


def request(name, num_samples=4):
    return GroupRequest(
        group_id=name,
        prompt_uid=name,
        begun_version=0,
        dataset="d",
        prompt="p",
        ground_truth=None,
        num_samples=num_samples,
        seed=0,
        sampling=Sampling(),
    )


def ids(shares):
    return {engine: [r.group_id for r in share] for engine, share in shares.items()}


def test_the_least_loaded_engine_is_next_and_the_first_of_equals():
    routing = Routing(concurrency=None)
    routing.add([request("a"), request("b", 2), request("c", 2), request("d"), request("e", 1)])
    assert ids(routing.assign([0, 1])) == {0: ["a", "d"], 1: ["b", "c", "e"]}
    assert (routing.outstanding(0), routing.outstanding(1)) == (8, 5)


def test_what_exceeds_every_limit_goes_to_whoever_is_free_first():
    routing = Routing(concurrency=LIMIT)
    routing.add(request(name) for name in "abcdef")
    assert ids(routing.assign([0, 1])) == {0: ["a", "c"], 1: ["b", "d"]}
    assert (routing.num_groups, routing.outstanding(0), routing.outstanding(1)) == (6, 8, 8)
    assert routing.assign([0, 1]) == {}
    assert routing.finish("d")
    assert ids(routing.assign([1])) == {1: ["e"]}
    assert routing.num_groups == 5


def test_a_group_larger_than_the_limit_has_an_engine_to_itself():
    routing = Routing(concurrency=LIMIT)
    routing.add([request("large", 12), request("small")])
    assert ids(routing.assign([0])) == {0: ["large"]}
    assert routing.finish("large")
    assert ids(routing.assign([0])) == {0: ["small"]}


def test_limits_move_with_reports_of_their_own_engine():
    routing = Routing(concurrency=LIMIT)
    routing.add(request(f"{number}") for number in range(8))
    routing.assign([0, 1])
    routing.observe(0, EngineLoad(steps=1))
    routing.observe(1, EngineLoad(steps=1, preemptions=1))
    assert (routing.limit(0), routing.limit(1)) == (12, 4)
    assert ids(routing.assign([0, 1])) == {0: ["4"]}
    assert routing.requeue(1) == 2
    assert routing.limit(1) == 8  # a restarted engine starts where all do


def test_orphans_go_before_what_waits_in_their_order():
    routing = Routing(concurrency=LIMIT)
    routing.add(request(name) for name in "abcde")
    routing.assign([0, 1])
    assert routing.requeue(0) == 2  # a and c
    assert ids(routing.assign([1, 2])) == {2: ["a", "c"]}
    assert routing.finish("b")
    assert ids(routing.assign([1, 2])) == {1: ["e"]}  # it alone still waited


def test_withdrawn_groups_are_named_to_their_engine_and_forgotten():
    routing = Routing(concurrency=LIMIT)
    routing.add(request(name) for name in "abcde")
    routing.assign([0, 1])
    assert routing.withdraw(["a", "b", "e", "never seen"]) == {0: ["a"], 1: ["b"]}
    assert not routing.finish("a")  # its answer was on the way
    assert routing.num_groups == 2
    assert (routing.outstanding(0), routing.outstanding(1)) == (4, 4)


def test_every_group_is_held_once_whatever_happens():
    """Random arrivals, finishes, deaths and withdrawals against a plain count."""
    draw = random.Random(0)
    routing, alive, given, gone = Routing(concurrency=LIMIT), {0, 1, 2, 3}, {}, set()
    for number in range(2000):
        what = draw.random()
        if what < 0.4:
            routing.add([request(f"{number}", draw.randint(1, 6))])
        elif what < 0.7 and given:
            name = draw.choice(sorted(given))
            assert routing.finish(name)
            gone.add(name)
            del given[name]
        elif what < 0.75:
            engine = draw.randrange(4)
            lost = [name for name, (owner, _) in given.items() if owner == engine]
            assert routing.requeue(engine) == len(lost)
            for name in lost:
                del given[name]
            alive ^= {engine}
        elif what < 0.8 and given:
            name = draw.choice(sorted(given))
            assert routing.withdraw([name]) == {given.pop(name)[0]: [name]}
            gone.add(name)
        for engine, share in routing.assign(sorted(alive)).items():
            for one in share:
                assert one.group_id not in given and one.group_id not in gone
                given[one.group_id] = (engine, one.num_samples)
        for engine in range(4):
            held = [samples for owner, samples in given.values() if owner == engine]
            assert routing.outstanding(engine) == sum(held)
            assert sum(held) <= LIMIT.limit or len(held) == 1
    assert len(gone) > 100
