"""Drive a run: command line, loop of steps, placement; the one package that imports all others."""

import os

# Ray reads its authentication mode when it is imported, and every process of a cluster must agree.
os.environ.setdefault("RAY_AUTH_MODE", "token")
