"""Check a configuration before anything expensive starts, and say what it will cost."""
