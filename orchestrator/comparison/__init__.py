"""Comparison of runs that have been made: where two part, and a table of several."""
