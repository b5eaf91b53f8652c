"""Prompt files: rows by number, and a row made into a prompt."""
