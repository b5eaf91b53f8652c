"""Let a policy call tools: their schemas, the processes that run them, and the environment."""
