"""Turns on a shared GPU: the order of calls, what is refused, and where processes are placed."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.utils import instantiate

from conf.compose import ConfigError, compose
from conf.schema import TrainConfig
from orchestrator.fleet.colocation import Colocation, sleep_engines
from orchestrator.planning import engine_memory, fitting, plan
from orchestrator.planning.placement import bundles
from orchestrator.planning.roles import PlannedRole, roles_of
from orchestrator.planning.settings import vllm_settings
from workers.calls import Call

GIB = 2**30


class Group:
    """Records calls in a list that several groups share."""

    def __init__(self, role: str, calls: list[tuple[Any, ...]]) -> None:
        self._role, self._calls = role, calls

    def call(self, call: Call[Any, Any], *, timeout_s: float) -> list[Any]:
        if call.method != "device_bytes":
            self._calls.append((self._role, call.method, *call.args))
        return [3 * GIB, 5 * GIB]

    def start(self, call: Call[Any, Any], *, timeout_s: float) -> Group:
        self.call(call, timeout_s=timeout_s)
        return self

    def survivors(self) -> dict[int, Any]:
        return {}


def turns(
    *overrides: str, reference: bool = False
) -> tuple[Colocation, Group, list[tuple[Any, ...]]]:
    calls: list[tuple[Any, ...]] = []
    engines, learner = Group("engines", calls), Group("learner", calls)
    scoring = Group("reference", calls) if reference else None
    _, config = compose(["experiment=tiny", *overrides])
    taking = Colocation(engines, learner, config, scoring)  # type: ignore[arg-type]
    return taking, engines, calls


@pytest.mark.parametrize(
    ("patterns", "level"), [("[]", 2), ("['model.layers.0.*']", 1), ("null", 2)]
)
def test_frozen_weights_are_kept_by_an_engine_that_sleeps(patterns: str, level: int) -> None:
    taking, _, calls = turns("cluster.colocated=true", f"+model.freeze={patterns}")
    taking.learn()
    assert calls[0] == ("engines", "sleep", level)


def test_one_holds_the_memory_at_a_time() -> None:
    taking, _, calls = turns("cluster.colocated=true")
    taking.learn()
    calls.append(("train",))
    taking.receive()
    calls.append(("publish",))
    taking.generate()
    assert calls == [
        ("engines", "sleep", 2),
        ("learner", "reload_states"),
        ("train",),
        ("learner", "offload_states"),
        ("engines", "wake", ["weights"]),
        ("publish",),
        ("learner", "empty_cache"),
        ("engines", "wake", ["kv_cache"]),
    ]
    assert taking.metrics() == {
        "colocation/engines_asleep_bytes": 5 * GIB,
        "colocation/generating_bytes": 5 * GIB,
    }


def test_a_reference_gives_back_what_it_does_not_need_before_engines_wake() -> None:
    taking, _, calls = turns("cluster.colocated=true", reference=True)
    taking.receive()
    assert calls == [
        ("learner", "offload_states"),
        ("reference", "empty_cache"),
        ("engines", "wake", ["weights"]),
    ]


def test_an_engine_that_loads_has_the_time_of_a_start_before_the_learner_takes_its_turn() -> None:
    limits: list[float] = []

    class Loading(Group):
        def start(self, call: Call[Any, Any], *, timeout_s: float) -> Group:
            limits.append(timeout_s)
            return super().start(call, timeout_s=timeout_s)

    _, config = compose(["experiment=tiny", "cluster.colocated=true"])
    engines, learner = Loading("engines", []), Group("learner", [])
    taking = Colocation(engines, learner, config)  # type: ignore[arg-type]
    taking.learn()
    timeouts = config.cluster.timeouts
    assert limits == [timeouts.start_s + timeouts.publish_s]


def test_engines_make_room_before_the_learner_loads() -> None:
    _, config = compose(["experiment=tiny", "cluster.colocated=true"])
    _, engines, calls = turns("cluster.colocated=true")
    sleep_engines(engines, config)  # type: ignore[arg-type]
    assert calls == [("engines", "sleep", 2)]


def test_what_an_adapter_does_not_change_stays_in_host_memory() -> None:
    overrides = ["cluster.colocated=true", "model/adapter=lora"]
    _, config = compose(["experiment=tiny", *overrides])
    taking, engines, calls = turns(*overrides)
    sleep_engines(engines, config)  # type: ignore[arg-type]
    taking.learn()
    sleeping = ("engines", "sleep", 1)
    assert calls == [sleeping, sleeping, ("learner", "reload_states")]


def test_nothing_happens_on_devices_of_their_own() -> None:
    taking, _, calls = turns()
    taking.learn()
    taking.receive()
    taking.generate()
    assert calls == []
    assert taking.metrics() == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=one_step_off"], r"schedule.max_staleness=1: colocated engines sleep"),
        (["rollout.tensor_parallel_size=2"], "rollout.tensor_parallel_size=2: a colocated engine"),
        (["rollout.num_engines=2"], "rollout.num_engines=2: .* learner.num_ranks = 1"),
        (["rollout.transport=nccl"], "rollout.transport='nccl': NCCL refuses two processes"),
        (["cluster.learner.num_gpus=0.8"], "the roles ask for 1.35 of the GPU that they share"),
    ],
)
def test_what_can_not_take_turns_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["cluster=gpu_1_colocated", *overrides])


def test_a_critic_has_no_turn() -> None:
    raw, config = compose(["experiment=tiny", "cluster.colocated=true", "algorithm=ppo"])
    with pytest.raises(ValueError, match="none for the critic of algorithm=ppo"):
        plan.check(config, instantiate(raw.algorithm, _convert_="all"))


def planned(*overrides: str) -> tuple[TrainConfig, tuple[PlannedRole, ...]]:
    raw, config = compose(list(overrides))
    return config, roles_of(config, instantiate(raw.algorithm, _convert_="all"))


def test_engine_rank_and_reference_share_a_bundle() -> None:
    shape = ["rollout.num_engines=2", "learner.num_ranks=2", "cluster.gpus_per_node=2"]
    _, roles = planned("cluster=gpu_1_colocated", *shape)
    alone = {"CPU": 2.0, "GPU": 0.9}
    assert bundles(roles) == [alone, alone]
    _, roles = planned("cluster=gpu_1_colocated", *shape, "algorithm=grpo")
    assert bundles(roles) == [{"CPU": 3.0, "GPU": pytest.approx(1.0)}] * 2


def test_memory_is_that_of_one_turn() -> None:
    """1.5 B parameters: 39.3 GiB to learn and 38.9 to sample fit 60 GiB in turn, not at once."""
    sizes = ["cluster=gpu_1_colocated", "model=qwen25_1_5b", "cluster.gpu_memory_gib=60"]
    sizes += ["rollout.kv_cache_gib=32"]
    fitting.check(*planned(*sizes))
    with pytest.raises(ValueError, match=r"that is 78\.2 GiB on one GPU of 60 GiB"):
        fitting.check(*planned(*sizes, "cluster.colocated=false"))
    # In the engines' turn the learner keeps weights and gradients: 38.9 + 15.5.
    with pytest.raises(ValueError, match=r"that is 54\.\d GiB on one GPU of 50 GiB"):
        fitting.check(*planned(*sizes, "cluster.gpu_memory_gib=50"))


def test_an_engine_takes_what_the_resting_learner_leaves_it() -> None:
    """80 GiB less the learner's weights, gradients and reserve: 80 - 5.75 - 5.75 - 4 = 64.5."""
    sizes = ["cluster=gpu_1_colocated", "model=qwen25_1_5b"]
    config, roles = planned(*sizes)
    assert config.rollout.kv_cache_gib is None
    assert engine_memory.engine_fraction(config, roles) == 0.8  # 64.5 / 80
    settings = vllm_settings(config, "m", engine_id=0, transport="ipc", gpu_fraction=0.8)
    assert settings.kv_cache_memory_bytes is None
    assert settings.engine_args()["gpu_memory_utilization"] == 0.8
    # A named cache: weights 2.9, cache 32, reserve 4.
    named = planned(*sizes, "rollout.kv_cache_gib=32")
    assert engine_memory.engine_fraction(*named) == 0.48  # 38.9 / 80
    # Of unknown sizes: what Ray counts.
    assert engine_memory.engine_fraction(*planned("cluster=gpu_1_colocated", "model=tiny")) == 0.45
    # Of its own GPU: what vLLM takes by itself.
    assert engine_memory.engine_fraction(*planned("cluster=gpu_8", "model=qwen25_1_5b")) is None
