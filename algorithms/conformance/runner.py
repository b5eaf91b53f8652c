"""Runner of every check on one algorithm.

Holds the body of `ballast check-algorithm`, and runs in its process. Not a command line.
"""

from collections.abc import Callable

from algorithms.algorithm import Algorithm
from algorithms.conformance import checks
from algorithms.conformance.report import Report, Row

CHECKS: dict[str, Callable[[Algorithm], str]] = {
    "pickles and logs in one line": checks.log_line,
    "reads what it declares": checks.columns,
    "finite gradients on edge cases": checks.finite_on_edges,
    "finite credit on edge cases": checks.credit_on_edges,
    "same credit for any observation": checks.observations,
    "autograd equals differences": checks.central_differences,
    "same gradient for any packing": checks.invariance,
    "only the policy is trained": checks.stop_gradients,
    "gates keep values": checks.gates_keep_values,
    "REINFORCE on-policy": checks.on_policy,
    "learns a small task": checks.learning,
}


def check(algorithm: Algorithm) -> list[Row]:
    """Run every check; return one row each.

    An exception inside an algorithm is a failed row, not an error.
    """
    rows = []
    for name, function in CHECKS.items():
        try:
            rows.append(Row(name=name, passed=True, detail=function(algorithm)))
        except Exception as error:  # a user's code runs here
            kind = "" if isinstance(error, checks.CheckFailed) else f"{type(error).__name__}: "
            rows.append(Row(name=name, passed=False, detail=f"{kind}{error}"))
    return rows


def run(algorithm: Algorithm) -> Report:
    """Run all checks; return a report with a `table()` and a verdict."""
    return Report(algorithm=repr(algorithm), rows=tuple(check(algorithm)))
