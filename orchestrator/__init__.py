"""The driver of a run: command line, trainer loop, placement; the layer that sees all others."""

import os

# Ray reads its authentication mode when it is imported, and every process of a cluster must agree.
os.environ.setdefault("RAY_AUTH_MODE", "token")
