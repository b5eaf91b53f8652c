"""DeepSpeed's own reading of our configuration, and the attributes that moves of states rely on."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero import stage3, stage_1_and_2
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum, OffloadStateTypeEnum
from deepspeed.utils.tensor_fragment import fragment_address, tensor_fragment

from workers.engines.zero.optimizers import MASTER_WEIGHTS
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings, deepspeed_config

CASES = {
    "stage 0": {"zero_stage": 0},
    "stage 2": {"zero_stage": 2},
    "stage 2, weights of bfloat16": {"zero_stage": 2, "param_dtype": "bfloat16"},
    "stage 3, weights of float16": {
        "zero_stage": 3,
        "dtype": "float16",
        "param_dtype": "float16",
    },
    "stage 2, optimizer on the host": {"zero_stage": 2, "offload_optimizer": True},
    "stage 3": {"zero_stage": 3},
    "stage 3, all on the host": {
        "zero_stage": 3,
        "offload_optimizer": True,
        "offload_params": True,
    },
    "reference": {"zero_stage": 3, "offload_params": True, "optimizer": None},
}


def settings_of(case: dict[str, Any]) -> ZeroSettings:
    optimizer = case.get("optimizer", OptimizerSettings(lr=1e-6))
    return ZeroSettings(**{"model": "m", "dtype": "bfloat16", **case, "optimizer": optimizer})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_deepspeed_reads_what_we_mean(case: dict[str, Any]) -> None:
    read = DeepSpeedConfig(deepspeed_config(settings_of(case)))
    assert read.zero_config.stage == case["zero_stage"]
    assert read.gradient_accumulation_steps == 1
    assert read.train_micro_batch_size_per_gpu == 1
    for name, part in (("offload_optimizer", "optimizer"), ("offload_params", "param")):
        found = getattr(read.zero_config, f"offload_{part}")
        wanted = case.get(name, False)
        assert (found is not None and found.device == OffloadDeviceEnum.cpu) == wanted, name


def test_a_gpu_overlaps_gathers_ahead_and_sums_in_float32() -> None:
    case = {"zero_stage": 3, "param_dtype": "bfloat16"}
    on_cpu, on_gpu = (
        DeepSpeedConfig(deepspeed_config(settings_of(case), on_gpu=on_gpu))
        for on_gpu in (False, True)
    )
    zero = on_gpu.zero_config
    assert (on_cpu.zero_config.overlap_comm, zero.overlap_comm) == (False, True)
    assert (zero.prefetch_bucket_size, zero.max_live_parameters) == (50_000_000, 1_000_000_000)
    assert on_gpu.bfloat16_config.enabled
    assert (on_gpu.grad_accum_dtype, on_gpu.communication_data_type) == ("fp32", torch.float32)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_key_of_ours_is_one_that_deepspeed_does_not_read(case: dict[str, Any]) -> None:
    """DeepSpeed passes over a key that it does not know, and a memory plan with it."""
    config = deepspeed_config(settings_of(case))
    fields = DeepSpeedZeroConfig.model_fields
    known = set(fields) | {field.alias for field in fields.values() if field.alias}
    assert set(config["zero_optimization"]) <= known
    constants = inspect.getmodule(DeepSpeedConfig)
    from deepspeed.runtime import constants as names
    from deepspeed.runtime.zero import config as zero_names

    values = {
        value
        for module in (constants, names, zero_names)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    source = inspect.getsource(constants) if constants else ""
    unread = [key for key in config if key not in values and f'"{key}"' not in source]
    assert unread == []


def test_states_of_stage_3_are_moved_by_these_names() -> None:
    engine = deepspeed.DeepSpeedEngine
    buffers = [OffloadStateTypeEnum.lp_grads, OffloadStateTypeEnum.contiguous_grad_buffer]
    inspect.signature(engine.offload_states).bind(object(), include=buffers, pin_memory=False)
    inspect.signature(engine.reload_states).bind(object())


def test_every_tensor_of_a_parameters_mapping_is_moved_or_none_of_the_optimizers() -> None:
    """Views that `move_states` does not know would keep the device's memory."""
    held = {
        field.name
        for field in dataclasses.fields(tensor_fragment)
        if field.type not in (int, bool, fragment_address)
    }
    moved = {"hp_fragment", "optim_fragment"}
    gradients_and_weights = {"lp_fragment", "gradient_dict", "offload_gradient_dict"}
    assert held == moved | gradients_and_weights


def test_master_weights_have_these_names() -> None:
    sources = (bf16_optimizer, stage_1_and_2, stage3)
    for source, name in zip(sources, MASTER_WEIGHTS, strict=True):
        assert f"self.{name}" in inspect.getsource(source), name
