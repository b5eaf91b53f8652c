"""Run a policy's Python code in the sandbox of the rewards: the interpreter of `environment=tools`.

Runs in a tool process, which starts bubblewrap for each call. State is not kept from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.reward.scorers.programs.sandbox import Limits, check_isolation, run
from workers.rollout.tools.toolset import Function, Functions

# Errors are shown with the output: the sandbox itself keeps standard output only.
CODE = (
    "\nimport sys\nsys.stderr = sys.stdout\nexec(compile(sys.stdin.read(), 'code', 'exec'), {})\n"
)


@dataclass(frozen=True, kw_only=True)
class PythonInterpreter(Functions):
    """Toolset of one tool, `python`, which runs code with Python's standard library.

    Example: PythonInterpreter(limits=Limits(wall_s=4.0, memory_mib=512))

    Attributes:
        limits: of each run; `wall_s` must stay below the environment's limit of a call.
    """

    limits: Limits = field(default_factory=Limits)

    def functions(self) -> Sequence[Function]:
        """See `Functions`."""
        return [self.python]

    def prepare(self) -> None:
        """Refuse a machine that can't isolate.

        Raises:
            NoIsolationError: bubblewrap is missing, or shows more than it should.
        """
        check_isolation()
        super().prepare()

    def python(self, code: str) -> str:
        """Run Python code and return what it prints, errors included.

        Args:
            code: a whole program; nothing is kept from an earlier call.
        """
        ran = run(CODE, stdin=code, limits=self.limits)
        if ran.ended == "exit 0":
            return ran.output
        why = {"time": "the time was over", "output": "there was too much output"}
        return f"{ran.output}\n[ended early: {why.get(ran.ended, ran.ended)}]".lstrip("\n")
