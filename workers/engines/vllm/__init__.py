"""Wrap vLLM: settings, engine, its process, its weights."""
