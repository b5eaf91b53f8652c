"""The driver of a run: command line, trainer loop, placement. It alone sees every other room."""
