"""Turn a prompt into one or several turns of a trajectory: environments, in the rollout worker."""
