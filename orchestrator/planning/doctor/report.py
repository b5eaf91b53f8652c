"""Run all checks in order, or only the cheap ones that `train` runs by itself.

Runs in the process of the command. The checks are in the other modules of this folder.
"""

from __future__ import annotations

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.planning import plan
from orchestrator.planning.doctor import folders, inputs, machine, network
from orchestrator.planning.doctor.findings import Finding, fault, faults, ok
from orchestrator.planning.roles import roles_of


def examine(config: TrainConfig, algorithm: Algorithm) -> list[Finding]:
    """Return every finding about this machine and this configuration; start no engine."""
    roles = roles_of(config, algorithm)
    findings = [_plan(config, algorithm)]
    findings += machine.check(config, roles)
    findings += folders.check(config)
    findings += inputs.check(config)
    findings += network.check(config, roles)
    return findings


def _plan(config: TrainConfig, algorithm: Algorithm) -> Finding:
    try:
        plan.check_launch(config, algorithm)
    except ValueError as error:
        return fault("plan", str(error), "ballast train dry_run=true shows the whole plan")
    return ok("plan", f"{config.run_name}: the configuration fits cluster={config.cluster.name}")


def check_machine(config: TrainConfig, algorithm: Algorithm) -> None:
    """Run the checks that cost milliseconds.

    Raises:
        ValueError: this machine has faults; the message lists each with its remedy.
    """
    roles = roles_of(config, algorithm)
    found = faults([*machine.check(config, roles), *folders.check(config)])
    if found:
        raise ValueError("; ".join(f"{f.subject}: {f.text} ({f.remedy})" for f in found))
