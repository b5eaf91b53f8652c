"""Estimate what a learner's rank holds in the memory of its host, beside its GPU.

Computed from sizes alone, like `memory.py`. Runs in the driver. Weights are no part of it: they are
read from the file straight onto the GPU, and ranks share the pages of the file that ZeRO-3 reads.
"""

from __future__ import annotations

from conf.schema import ArchitectureConfig, TrainConfig
from orchestrator.planning.architecture import architecture_of, num_parameters
from orchestrator.planning.memory import ELEMENT_BYTES, Share, num_trained


def host_share(config: TrainConfig, model: ArchitectureConfig) -> Share:
    """Return the host memory of one rank of the learner.

    A checkpoint copies the rank's part of weights and moments, which are float32, before it is
    written. What is offloaded stays on the host: float32 weights, moments and gradient of the
    rank's part, and the parameters.
    """
    learner = config.learner
    moments = 2 if learner.optimizer.name == "adamw" else 0
    divided = 4.0 * num_trained(config, model) / learner.num_ranks
    held = ELEMENT_BYTES[config.model.param_dtype] * num_parameters(model) / learner.num_ranks
    parts = {"checkpoint": divided * (1 + moments)}
    parts["optimizer"] = divided * (2 + moments) if learner.offload_optimizer else 0.0
    parts["parameters"] = held if learner.offload_params else 0.0
    return Share(role="learner, on its host", parts=parts)


def describe_host(config: TrainConfig) -> list[str]:
    """Describe it in a line; no line for a learner on CPUs or of unknown sizes."""
    model = architecture_of(config.model)
    if model is None or not config.trainer.learns or not config.cluster.learner.num_gpus:
        return []
    return [str(host_share(config, model))]
