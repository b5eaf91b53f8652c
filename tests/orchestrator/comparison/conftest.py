"""Recorded runs, written as for the tests of the report."""

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parents[1] / "report")
if HERE not in sys.path:
    sys.path.insert(0, HERE)
