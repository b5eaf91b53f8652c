"""The driver of a run: command line, trainer loop, placement; the only layer that sees all others."""
