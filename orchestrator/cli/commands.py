"""Run each command of the command line, in a few lines of composition.

Runs in the process of the command, which is the driver for `train`. Options are parsed in
`parser.py`; every heavy import stays inside the command that needs it.
"""

from __future__ import annotations

import gc
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from conf.compose import compose
from conf.schema import TrainConfig
from orchestrator.telemetry.counting import counted

if TYPE_CHECKING:
    from algorithms.algorithm import Algorithm


def _compose(
    options: Namespace, *, extra: tuple[str, ...] = (), last: tuple[str, ...] = ()
) -> tuple[DictConfig, TrainConfig]:
    folder = None if options.config_dir is None else str(Path(options.config_dir).absolute())
    return compose([*extra, *options.overrides, *last], config_dir=folder)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Import and compose without the garbage collector, which would find nothing.

    Importing torch makes objects that all stay. Searching them, again and again and once more at
    exit, takes a third of the CPU time of a dry run. Frozen objects are never searched again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def train(options: Namespace) -> int:
    """Train, or print the plan."""
    if options.multirun:
        from orchestrator.cli.multirun import train_all

        return train_all(options.overrides, options.config_dir, options.dry_run, options.parallel)
    with _without_garbage_collection():
        raw, config, algorithm = _check_and_print_plan(options)
    if not config.dry_run:
        from orchestrator.cli.jobs.submission import load_secrets
        from orchestrator.planning.doctor.report import check_machine
        from orchestrator.run import run

        load_secrets()
        check_machine(config, algorithm)
        run(raw, config, algorithm)
    return 0


def _check_and_print_plan(options: Namespace) -> tuple[DictConfig, TrainConfig, Algorithm]:
    """Check the configuration and print the plan.

    Of the heavy packages only torch is loaded.
    """
    raw, config = _compose(options, extra=("dry_run=true",) if options.dry_run else ())
    from orchestrator.planning import plan
    from orchestrator.planning.resuming import (
        check_same_algorithm,
        check_same_model,
        check_same_rate,
        check_same_roles,
    )

    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check_launch(config, algorithm)
    check_same_model(config)
    check_same_roles(config)
    check_same_algorithm(raw, config)
    check_same_rate(config, algorithm)
    print(plan.describe(config, algorithm))
    return raw, config, algorithm


def eval(options: Namespace) -> int:  # noqa: A001 - the command's name
    """Score a model folder or a checkpoint on held-out prompts."""
    from orchestrator.cli.evaluate import evaluate

    folder = None if options.config_dir is None else str(Path(options.config_dir).absolute())
    scores = evaluate(
        Path(options.path).absolute(), options.overrides, folder, Path(options.output)
    )
    if (why := scores.all_failed()) is not None:
        print(f"ballast eval: every sample failed: {why}", file=sys.stderr)
        return 1
    return 0


def report(options: Namespace) -> int:
    """Write the report of one or several runs and print its path."""
    from orchestrator.report.page import FILE
    from orchestrator.report.writing import write_report

    folders = [Path(run).absolute() for run in options.runs]
    default = folders[0] / FILE if len(folders) == 1 else Path(FILE).absolute()
    path = Path(options.output).absolute() if options.output else default
    if options.output and not path.parent.is_dir():
        raise ValueError(f"--output {path}: its folder does not exist; make it, or choose another")
    write_report(folders, path, goal=options.goal)
    print(f"report  {path}  ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0


def diff(options: Namespace) -> int:
    """Compare two runs to the bit; return 1 if they differ."""
    from orchestrator.comparison.difference import compare_two
    from orchestrator.report.run_record import read_run

    found = compare_two(
        read_run(Path(options.left).absolute()), read_run(Path(options.right).absolute())
    )
    print(found.text)
    return 0 if found.equal else 1


def compare(options: Namespace) -> int:
    """Print a table of runs."""
    from orchestrator.comparison.overview import as_csv, row, runs_in, table
    from orchestrator.report.run_record import read_run

    runs = runs_in([Path(run).absolute() for run in options.runs])
    rows = [row(read_run(run), goal=options.goal) for run in runs]
    print(as_csv(rows) if options.csv else table(rows))
    return 0


def rehearse(options: Namespace) -> int:
    """Rehearse a run in simulated time and print its steps, or compare schedules."""
    from orchestrator.planning import plan
    from orchestrator.rehearsal.comparison import SCHEDULES, divisions, overrides
    from orchestrator.rehearsal.figures import figures, steps_table, table
    from orchestrator.rehearsal.run import peak_memory_bytes
    from orchestrator.rehearsal.run import rehearse as run
    from orchestrator.telemetry import bubbles

    _, config = _compose(options)
    wanted: list[list[str]] = [[]]
    if options.compare:
        pairs = divisions(config, options.ratios)
        wanted = [overrides(name, *pair) for pair in pairs for name in SCHEDULES]
    rows = []
    for chosen in wanted:
        raw, config = _compose(options, last=tuple(chosen))
        algorithm = instantiate(raw.algorithm, _convert_="all")
        plan.check(config, algorithm)
        moments = run(config, algorithm)
        rows.append(figures(config, moments))
        if not options.compare:
            print(steps_table(moments), end="\n\n")
    print(table(rows))
    if not options.compare:
        shares = bubbles.mean_shares([moment.metrics for moment in moments])
        print(f"\nbubbles: {bubbles.diagnose(shares, config)}")
    print(f"\npeak memory, simulation included: {peak_memory_bytes() / 2**30:.2f} GiB")
    return 0


def doctor(options: Namespace) -> int:
    """Examine this machine for a run; return 1 if the run could not work."""
    raw, config = _compose(options)
    from orchestrator.planning.doctor.findings import faults, table
    from orchestrator.planning.doctor.report import examine

    findings = examine(config, instantiate(raw.algorithm, _convert_="all"))
    print(table(findings))
    return 1 if faults(findings) else 0


def nodes(options: Namespace) -> int:
    """Wait for a cluster's nodes and list them."""
    from orchestrator.cluster.nodes import table, wait_for_nodes

    found = wait_for_nodes(options.address, count=options.wait_for, timeout_s=options.timeout)
    print(table(found))
    return 0


def submit(options: Namespace) -> int:
    """Send a run to a cluster and follow it."""
    from orchestrator.cli.jobs import commands

    return commands.submit(options)


def jobs(options: Namespace) -> int:
    """List a cluster's jobs."""
    from orchestrator.cli.jobs import commands

    return commands.jobs(options)


def logs(options: Namespace) -> int:
    """Print or follow a job's log."""
    from orchestrator.cli.jobs import commands

    return commands.logs(options)


def stop(options: Namespace) -> int:
    """Stop a job with a checkpoint."""
    from orchestrator.cli.jobs import commands

    return commands.stop(options)


def scale(options: Namespace) -> int:
    """Give a running job more engines, or fewer, and print its answers."""
    if options.address is not None:
        from orchestrator.cli.jobs import commands

        return commands.scale(options)
    from orchestrator.fleet.scaling import request_engines

    def print_line(text: str) -> None:
        print(text, flush=True)

    run_dir = Path(options.run).absolute()
    message = request_engines(
        run_dir, options.engines, timeout_s=options.timeout, print_line=print_line
    )
    print_line(message)
    return 0


def watch(options: Namespace) -> int:
    """Show a run until it ends; return 1 if it failed."""
    if options.address is not None:
        from orchestrator.cli.jobs import commands

        return commands.watch(options)
    from orchestrator.cli.watching import watch

    return 1 if watch(Path(options.run).absolute()) == "failed" else 0


def data(options: Namespace) -> int:
    """Generate or find the prompt files; with the word `inspect`, show their rows as sent."""
    if options.overrides[:1] == ["inspect"]:
        options.overrides = options.overrides[1:]
        return _inspect_data(options)
    _, config = _compose(options)
    from orchestrator.planning.sources import heldout_prompts, prompt_sets

    train_set, heldout = prompt_sets(config.data)
    print(f"{counted(len(train_set), 'training prompt')}: {train_set.where}")
    if heldout is not None:
        print(f"{counted(len(heldout), 'held-out prompt')}: {heldout.where}")
    for name, prompts in heldout_prompts(config).items():
        print(f"{counted(len(prompts), 'prompt')} of {name}: {prompts.where}")
    return 0


def _inspect_data(options: Namespace) -> int:
    raw, config = _compose(options)
    from orchestrator.planning.inspection import inspect
    from orchestrator.planning.sources import prepare
    from orchestrator.planning.trial import build_scorer

    for line in inspect(config, build_scorer(raw), prepare(config)):
        print(line)
    return 0


def model(options: Namespace) -> int:
    """Build or find the model folder."""
    _, config = _compose(options)
    from orchestrator.planning.sources import model_folder

    print(model_folder(config.model))
    return 0


def check_algorithm(options: Namespace) -> int:
    """Run the conformance kit; return 1 if a check fails."""
    raw, _ = _compose(options)
    from algorithms.conformance import run

    report = run(instantiate(raw.algorithm, _convert_="all"))
    print(report.table())
    return 0 if report.passed else 1


def metrics(options: Namespace) -> int:
    """Print the glossary of metrics, or its entries for a name or a pattern."""
    from orchestrator.cli.metrics import find, table

    if options.grafana:
        from orchestrator.cli.grafana import dashboard

        print(json.dumps(dashboard(), indent=2))
        return 0
    print(table(find(options.name)))
    return 0
