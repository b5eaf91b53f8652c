"""Rewards of finished responses: scorers that judge one sample, and processes to run them.

Scorers are frozen dataclasses named in `conf/reward` by their dotted path. They trust nothing
about a response; the pool trusts nothing about a scorer. A sample goes in, an outcome with a
reward or the reason for none comes out. Importing this package imports nothing but the standard
library, so that a scoring process starts in tens of milliseconds.
"""
