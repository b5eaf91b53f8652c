"""Imports ahead of use."""

import gc
import subprocess
import sys

import pytest

from workers.importing import import_ahead

COUNTED = """
import gc
from workers.importing import import_ahead
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]))
import_ahead("torch")
print("collections", len(collections))
"""


def test_nothing_is_collected_while_modules_are_imported():
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True)
    assert done.stdout == "collections 0\n", done.stderr


def test_the_collector_works_again_after_a_module_that_is_missing():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_ahead("json", "no_such_module")
    assert gc.isenabled()
