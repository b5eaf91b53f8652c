"""Host memory of a learner's rank: literal sums for Qwen2.5-7B."""

from conf.compose import compose
from orchestrator.planning.architecture import architecture_of
from orchestrator.planning.host_memory import describe_host, host_share

PARAMETERS = 7_615_616_512


def parts(*overrides: str) -> dict[str, float]:
    _, config = compose(["experiment=cpgd_qwen25_7b", "learner.num_ranks=8", *overrides])
    model = architecture_of(config.model)
    assert model is not None
    return host_share(config, model).parts


def test_a_checkpoint_copies_weights_and_both_moments_of_a_ranks_part() -> None:
    assert parts()["checkpoint"] == 12 * PARAMETERS / 8
    assert parts()["optimizer"] == parts()["parameters"] == 0


def test_what_is_offloaded_stays_on_the_host() -> None:
    overrides = ("learner.zero_stage=3", "learner.offload_optimizer=true")
    found = parts(*overrides, "learner.offload_params=true", "model.param_dtype=bfloat16")
    assert found["optimizer"] == 16 * PARAMETERS / 8
    assert found["parameters"] == 2 * PARAMETERS / 8


def test_the_plan_says_it_for_gpus_alone() -> None:
    _, config = compose(["experiment=cpgd_qwen25_7b", "learner.num_ranks=8"])
    (line,) = describe_host(config)  # 12 bytes of 0.95 B parameters
    assert line == "learner, on its host: checkpoint 10.6 = 10.6 GiB"
    _, tiny = compose(["experiment=tiny"])
    assert describe_host(tiny) == []
