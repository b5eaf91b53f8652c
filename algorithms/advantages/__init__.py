"""Credit assignment: rewards of the whole step's batch to an advantage per token."""
