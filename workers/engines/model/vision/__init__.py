"""Vision towers of the learner: features of images, what of a model is frozen, names of its parts.

Runs in the ranks of learner and reference.
"""
