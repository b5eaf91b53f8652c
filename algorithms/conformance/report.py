"""The result of a conformance run, as rows and as a table."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One check: what was asked, whether it held, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All checks of one algorithm."""

    algorithm: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """True when every row passed."""
        return all(row.passed for row in self.rows)

    def table(self) -> str:
        """The rows as aligned text, a verdict last."""
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{'pass' if row.passed else 'FAIL'}  {row.name:<{width}}  {row.detail}"
            for row in self.rows
        ]
        failed = sum(not row.passed for row in self.rows)
        verdict = f"{len(self.rows)} checks, {failed} failed"
        return "\n".join([self.algorithm, *lines, verdict])
