"""Generated prompt sets with verifiable answers, as Parquet: one kind a module.

Each module has a pure function from sizes and a seed to two tables (train and held out, disjoint),
and a `build_...` that writes them once. Runs in the driver, before anything starts, and in
`ballast data`. Nothing here samples or scores; the rewards do the scoring.
"""
