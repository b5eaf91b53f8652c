"""What would fit is named: weights of 16 bits before more ranks."""

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.planning import fitting
from orchestrator.planning.roles import roles_of


def refusal(*overrides: str) -> str:
    raw, config = compose(["experiment=cpgd_qwen25_7b", "model=qwen25_14b", *overrides])
    roles = roles_of(config, instantiate(raw.algorithm, _convert_="all"))
    with pytest.raises(ValueError, match="can't hold") as error:
        fitting.check(config, roles)
    return str(error.value)


def test_an_adapter_on_14_billion_weights_fits_one_gpu_in_bfloat16() -> None:
    """The base alone has 55 GiB in float32."""
    one_rank = ("model/adapter=lora", "learner.num_ranks=1", "learner.zero_stage=3")
    checkpointing = "learner.gradient_checkpointing=true"
    message = refusal(*one_rank, checkpointing, "cluster.gpu_memory_gib=48")
    assert "learner: weights 55.0" in message
    assert "model.param_dtype=bfloat16 would fit" in message
