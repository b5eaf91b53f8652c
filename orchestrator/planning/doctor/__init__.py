"""Check before a run that this machine can run a configuration: `ballast doctor`."""
