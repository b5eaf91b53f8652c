"""Wrap transformers models: packed forward, attention, head, LoRA."""
