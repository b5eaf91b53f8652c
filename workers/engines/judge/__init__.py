"""Serve a judge's frozen model: vLLM's OpenAI-compatible server, watched by a Ray actor."""
