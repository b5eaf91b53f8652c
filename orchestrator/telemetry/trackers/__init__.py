"""Hand metrics to trackers: `metrics.jsonl` always, others by name."""
