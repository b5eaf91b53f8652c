"""Engines that hold a model: vLLM for sampling, DeepSpeed for training.

Each runs in a process of its own role: rollout engines, learner, reference and critic ranks.
"""
