"""Result of a conformance run, as rows and as a table.

Runs in the process of `ballast check-algorithm`, or of a test. Checks nothing and prints nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Result of one check: its name, the verdict, and the measured detail or the fault."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Results of all checks of one algorithm."""

    algorithm: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """True where every row passed."""
        return all(row.passed for row in self.rows)

    def table(self) -> str:
        """Render the rows as aligned text, with a verdict as the last line."""
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{'pass' if row.passed else 'FAIL'}  {row.name:<{width}}  {row.detail}"
            for row in self.rows
        ]
        failed = sum(not row.passed for row in self.rows)
        verdict = f"{len(self.rows)} checks, {failed} failed"
        return "\n".join([self.algorithm, *lines, verdict])
