"""Import what a role needs to start, in the constructor of its actor.

All actors of a run are constructed at once, so that they import side by side, and before the driver
lets any of them load a model. Modules that the driver imports do not import these: they take
seconds.
"""

import gc
import importlib


def import_ahead(*names: str) -> None:
    """Import modules by name, without collections.

    Python's collector would walk all that is imported again and again: a quarter of the time.
    """
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        gc.enable()
