"""Parts that vLLM loads in its workers by name: masks of logits, mends of its CPU engine."""
