"""Keep the rollout engines of a run: share out work, publish weights, recover, scale."""
