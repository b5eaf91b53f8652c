"""The engines that hold a model: vLLM for sampling, DeepSpeed for training."""
