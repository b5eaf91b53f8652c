"""Check of the number of ranks that can share the attention heads of a model.

Runs in the driver, before anything starts, and in the ranks. Reads no model.
"""

from __future__ import annotations


def check_heads(num_heads: int, num_kv_heads: int, sequence_parallel_size: int) -> None:
    """Raise ValueError where the ranks that share a micro-batch cannot share its heads.

    Every rank takes equally many attention heads, and whole key-value heads or, where there are
    fewer of them than ranks, a copy of one.
    """
    possible = [
        size
        for size in range(1, num_heads + 1)
        if num_heads % size == 0 and (num_kv_heads % size == 0 or size % num_kv_heads == 0)
    ]
    if sequence_parallel_size not in possible:
        raise ValueError(
            f"sequence_parallel_size={sequence_parallel_size} cannot divide {num_heads} attention "
            f"heads and {num_kv_heads} key-value heads: choose one of "
            f"{', '.join(map(str, possible))}"
        )
