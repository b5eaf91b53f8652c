"""Define the records that processes exchange, pack them into tensors, and write them to disk."""
