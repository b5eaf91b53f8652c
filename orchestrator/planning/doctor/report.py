"""All checks in order, and the cheap ones that `train` runs by itself."""

from __future__ import annotations

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.planning import plan
from orchestrator.planning.doctor import inputs, machine, network
from orchestrator.planning.doctor.findings import Finding, fault, faults, ok
from orchestrator.planning.roles import roles_of


def examine(config: TrainConfig, algorithm: Algorithm) -> list[Finding]:
    """Every finding about this machine and this configuration; starts no engine."""
    roles = roles_of(config, algorithm)
    findings = [_plan(config, algorithm)]
    findings += machine.check(config, roles)
    findings += inputs.check(config)
    findings += network.check(config, roles)
    return findings


def _plan(config: TrainConfig, algorithm: Algorithm) -> Finding:
    try:
        plan.check(config, algorithm)
    except ValueError as error:
        return fault("plan", str(error), "ballast train dry_run=true shows the whole plan")
    return ok("plan", f"{config.run_name}: the configuration fits cluster={config.cluster.name}")


def require_machine(config: TrainConfig, algorithm: Algorithm) -> None:
    """The checks that cost milliseconds.

    Raises:
        ValueError: with every fault and its remedy.
    """
    roles = roles_of(config, algorithm)
    found = faults(machine.check(config, roles))
    if found:
        raise ValueError("; ".join(f"{f.subject}: {f.text} ({f.remedy})" for f in found))
