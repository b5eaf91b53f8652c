"""Small models that the project makes by itself: nothing here is downloaded from a model hub.

`tiny` builds a character-level model from random weights, `smollm2` converts the weights shipped
in a Python package. Both write ordinary Hugging Face folders that transformers, vLLM and DeepSpeed
load by path. Runs in the driver, before anything starts, and in `ballast model`. This package
trains no policy and knows no algorithm; data flows one way, to a folder on disk.
"""
