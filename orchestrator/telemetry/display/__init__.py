"""Show a run to a person: what it does now, and its last steps. Runs in the driver."""
