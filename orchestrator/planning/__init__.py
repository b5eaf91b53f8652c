"""Check a configuration before anything expensive starts, and describe the run's costs."""
