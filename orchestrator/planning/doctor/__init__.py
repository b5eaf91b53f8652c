"""`ballast doctor`: whether this machine and a configuration can run together, before they do."""
