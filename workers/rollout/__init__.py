"""Sample groups of trajectories with an engine: the process of the rollout role."""
