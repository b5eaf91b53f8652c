"""Score with models: language models as judges, and reward models."""
