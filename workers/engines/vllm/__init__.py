"""vLLM engines: settings, engine, its process, its weights.

Runs in the rollout workers, and `lifeline` and `cpu_generators` in vLLM's own processes; the driver
reads `settings` only.
"""
