"""Conformance kit: properties that every algorithm must have, runnable on your own algorithm."""

from algorithms.conformance.report import Report, Row
from algorithms.conformance.runner import check, run

__all__ = ["Report", "Row", "check", "run"]
