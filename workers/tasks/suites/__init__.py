"""Make held-out prompts of published suites from local copies of their files."""
