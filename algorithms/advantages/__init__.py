"""Credit assignment: from the rewards of the whole step's batch to one advantage per token."""
