"""Properties of single model families: the logits and the positions that they compute."""
