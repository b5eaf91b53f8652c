"""Score finished responses: the reward workers, their pool of scoring processes, and the scorers.

Scorers are frozen dataclasses named in `conf/reward` by their dotted path. A scorer assumes nothing
about a response; the pool assumes nothing about a scorer. A sample goes in, an outcome with a
reward or the reason for none comes out. Importing this package imports nothing but the standard
library, so that a scoring process starts in tens of milliseconds.
"""
