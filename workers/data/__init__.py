"""Define the records that processes exchange, and pack them."""
