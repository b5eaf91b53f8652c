"""The conformance kit: what every algorithm must satisfy, runnable on your own."""

from algorithms.conformance.report import Report, Row

__all__ = ["Report", "Row"]
