"""Start Ray, and place the processes of every role on it."""
