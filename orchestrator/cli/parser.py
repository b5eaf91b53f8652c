"""Parse the command line: `ballast train | submit | doctor | eval | data | ...`.

Only argument parsing happens here; every heavy import stays inside the command that needs it, so
that `--help` answers at once. Overrides follow Hydra's grammar (`key=value`, `group=member`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

EPILOG = """examples:
  ballast train                                        the quickstart
  ballast train experiment=tiny algorithm=dapo
  ballast train experiment=quickstart algorithm=cpgd learner.num_ranks=2 learner.zero_stage=3
  ballast train --config-dir my_conf algorithm=my_loss dry_run=true
  ballast eval runs/quickstart/final rollout.eval_samples_per_prompt=8
  ballast submit --address http://head:8265 experiment=tiny output_dir=/shared/runs
  ballast watch runs/quickstart                        the display of a run, in another terminal
  ballast report runs/quickstart                       one HTML file that opens offline
  ballast scale --engines 4 runs/quickstart
  ballast metrics time                                 metrics with "time" in their name

exit codes:
    0  done
    1  the run failed, or a check did (doctor, check-algorithm), or two runs differ (diff)
    2  the input can't be right: an option, an override, a file
  130  interrupted with Ctrl-C; a run that had begun its steps wrote a checkpoint first
  143  asked to stop (SIGTERM, ballast stop); a checkpoint was written first
submit and logs --follow end with the exit code of the job.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ballast",
        description="Stable RL post-training of language models on Ray, vLLM and DeepSpeed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def overrides(command: argparse.ArgumentParser) -> None:
        # Without a default, argparse would say that overrides are required.
        command.add_argument(
            "overrides", nargs="*", default=[], help="Hydra overrides, such as algorithm=dapo"
        )
        command.add_argument("--config-dir", help="a folder with groups of your own")

    train = command("train", "Train a policy.")
    train.add_argument("--dry-run", action="store_true", help="print the plan and exit")
    train.add_argument(
        "--multirun", action="store_true", help="a run for every combination of key=value,value"
    )
    train.add_argument(
        "--parallel", type=int, default=1, help="runs of --multirun at a time (%(default)s)"
    )
    overrides(train)
    evaluate = command("eval", "Score a model on held-out prompts: mean, pass@k and maj@k.")
    evaluate.add_argument("path", help="a Hugging Face folder, a run's folder or a checkpoint")
    evaluate.add_argument("--output", default="eval.json", help="where to write the scores")
    overrides(evaluate)
    data = command(
        "data",
        "Generate a data group's prompt files and say where they are. `ballast data inspect` shows "
        "their rows as they are sent, their lengths, and the reward of every ground truth.",
    )
    overrides(data)
    model = command("model", "Build a model group's folder and say where it is.")
    overrides(model)
    doctor = command("doctor", "Say whether a run could work on this machine, and what to mend.")
    overrides(doctor)
    rehearse = command(
        "rehearse", "Run the driver on simulated engines and learner, to plan a run."
    )
    rehearse.add_argument(
        "--compare", action="store_true", help="all schedules on several divisions of the GPUs"
    )
    rehearse.add_argument(
        "--ratios",
        default="1,2,4,8",
        help="GPUs that sample to GPUs that learn, with --compare (%(default)s)",
    )
    overrides(rehearse)
    _add_cluster_commands(command, overrides)
    report = command("report", "Write one HTML file about a run, or about several.")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    report.add_argument(
        "--output", help="the file to write (RUN/report.html; of several runs ./report.html)"
    )
    report.add_argument("--goal", type=float, help="a score to draw (tracking.goal of the run)")
    diff = command("diff", "Say where two runs part; the exit code is 1 if they do.")
    diff.add_argument("left", metavar="RUN_A", help="a run's folder")
    diff.add_argument("right", metavar="RUN_B", help="another one")
    compare = command("compare", "Make a table of runs: results, samples, tokens, seconds.")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one of runs")
    compare.add_argument("--goal", type=float, help="a score; adds the samples trained to reach it")
    compare.add_argument("--csv", action="store_true", help="with full numbers, for programs")
    check = command("check-algorithm", "Run the conformance kit on an algorithm.")
    overrides(check)
    metrics = command("metrics", "List what a run measures: name, unit, meaning, and when.")
    metrics.add_argument(
        "name", nargs="?", help="a name, a part of one, or a pattern such as 'time/*'"
    )
    metrics.add_argument(
        "--grafana", action="store_true", help="print a Grafana dashboard of them, as JSON"
    )
    return parser


def _add_cluster_commands(
    command: Callable[[str, str], argparse.ArgumentParser],
    overrides: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add `submit`, and the commands for submitted jobs and for the nodes of a cluster."""

    def on_cluster(name: str, text: str) -> argparse.ArgumentParser:
        added = command(name, text)
        added.add_argument(
            "--address", help="of the dashboard, such as http://head:8265 (RAY_API_SERVER_ADDRESS)"
        )
        return added

    submit = on_cluster("submit", "Train on a Ray cluster: the overrides of `train`, as a Ray job.")
    submit.add_argument("--working-dir", help="a folder to send along; the run starts in it")
    submit.add_argument("--wheel", help="this project's wheel, for a cluster without the project")
    submit.add_argument(
        "--env", action="append", default=[], help="NAME=VALUE, or NAME for its value here"
    )
    submit.add_argument(
        "--secret", action="append", default=[], help="NAME of a secret that the cluster must have"
    )
    submit.add_argument("--no-wait", action="store_true", help="return when it is submitted")
    overrides(submit)
    on_cluster("jobs", "List a cluster's jobs.")
    logs = on_cluster("logs", "Print a job's log.")
    logs.add_argument("job", help="the job's id")
    logs.add_argument("--follow", action="store_true", help="to the job's end")
    stop = on_cluster("stop", "Stop a job, with a checkpoint.")
    stop.add_argument("job", nargs="?", help="the job's id")
    stop.add_argument("--all", action="store_true", help="every job that has not ended")
    stop.add_argument("--timeout", type=float, default=3600.0, help="longest wait, in seconds")
    watch = on_cluster("watch", "Show a run that another process drives, until it ends.")
    watch.add_argument("run", help="the run's folder; with --address, the job's id")
    scale = on_cluster("scale", "Add engines to a running job, or take some from it.")
    scale.add_argument("--engines", type=int, required=True, help="how many it shall have")
    scale.add_argument("run", help="the run's folder; with --address, the job's id")
    scale.add_argument("--timeout", type=float, default=900.0, help="longest wait, in seconds")
    nodes = command("nodes", "Wait until a cluster's nodes have joined, and list them.")
    nodes.add_argument("--address", required=True, help="of Ray's head, HOST:PORT")
    nodes.add_argument("--wait-for", type=int, default=1, help="how many nodes there shall be")
    nodes.add_argument("--timeout", type=float, default=600.0, help="longest wait, in seconds")


def installed_version() -> str:
    """Return the version of the installed package, or "unknown" where only the source is there."""
    from importlib import metadata

    try:
        return metadata.version("ballast-rl")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script; return the exit code."""
    parser = build_parser()
    options, more = parser.parse_known_args(arguments)
    if flags := [word for word in more if word.startswith("-")]:
        parser.error(f"unknown option {flags[0]}; overrides are written key=value")
    if options.version:
        print(f"ballast {installed_version()}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    if more and not hasattr(options, "overrides"):
        parser.error(f"ballast {options.command} takes no {more[0]!r}")
    if more:
        options.overrides = [*options.overrides, *more]  # overrides may stand after options, too
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a user's own modules, after everything installed
    # A shell starts background jobs with interrupts ignored; asked to stop, a run shall stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from hydra.errors import InstantiationException

    from orchestrator.cli import commands
    from orchestrator.stop import StoppedError
    from orchestrator.telemetry.failure_log import describe, with_notes

    run = getattr(commands, options.command.replace("-", "_"))
    try:
        return int(run(options))
    except InstantiationException as error:  # a part that refuses its values: its own words count
        print(f"ballast {options.command}: {error.__cause__ or error}", file=sys.stderr)
        return 2
    except StoppedError as error:
        print(f"ballast {options.command}: {with_notes(str(error), error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"ballast {options.command}: stopped", file=sys.stderr)
        return 130
    except Exception as error:  # Ray's errors too, of which few are RuntimeErrors
        print(f"ballast {options.command}: {describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
