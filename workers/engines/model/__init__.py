"""Transformers models for packed batches: forward pass, attention, head, LoRA.

Runs in the ranks of learner, reference and critic; `heads` and `lora_settings` in the driver too.
Starts no process and knows no optimizer.
"""
