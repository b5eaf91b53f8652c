"""Publication of the learner's weights into the rollout engines, and the proof of arrival."""
