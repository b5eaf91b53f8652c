"""Names by which a learner publishes a Mixtral, beside those of its files, which vLLM knows.

transformers calls a layer's mixture `mlp` and fuses the matrices of its experts; vLLM 0.32 takes
fused ones too, as `w13` and `w2`, and looks for `block_sparse_moe`. Runs inside vLLM's workers.
Changes nothing of how files are loaded: they have none of these names.
"""

from __future__ import annotations

from typing import Any

PUBLISHED = {
    ".mlp.": ".block_sparse_moe.",
    ".experts.gate_up_proj": ".experts.w13",
    ".experts.down_proj": ".experts.w2",
}


def accept_published_names(mapper_class: Any, *model_classes: Any) -> None:
    """Let classes of vLLM's Mixtral load what transformers' Mixtral calls its tensors.

    Args:
        mapper_class: vLLM's `WeightsMapper`.
        model_classes: with a mapper of names, which is replaced.
    """
    published = mapper_class(orig_to_new_substr=PUBLISHED)
    for model_class in model_classes:
        model_class.hf_to_vllm_mapper = published | model_class.hf_to_vllm_mapper
