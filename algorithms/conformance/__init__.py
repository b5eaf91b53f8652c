"""The conformance kit: what every algorithm must satisfy, runnable on your own."""

from algorithms.conformance.report import Report, Row
from algorithms.conformance.runner import check, run

__all__ = ["Report", "Row", "check", "run"]
