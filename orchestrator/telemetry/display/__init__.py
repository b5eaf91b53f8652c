"""Show a run to a person: what it does now, its last steps, its last page. Runs in the driver."""
