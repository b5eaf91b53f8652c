"""Play rollouts in processes of their own, which may end without an end of the rollout worker."""
