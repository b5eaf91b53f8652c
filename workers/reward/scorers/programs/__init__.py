"""Run programs that a model wrote against the tests of their rows, each in a sandbox."""
