"""Train a model and compute log-probs or values: the ranks of learner, reference and critic."""
