"""The command line: `ballast train | eval | data | model | doctor | check-algorithm`.

Only argument parsing happens here; every heavy import stays inside the command that needs it, so
that `--help` answers at once. Overrides follow Hydra's grammar (`key=value`, `group=member`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """examples:
  ballast train                                        the quickstart
  ballast train experiment=tiny algorithm=dapo
  ballast train experiment=quickstart algorithm=cpgd learner.num_ranks=2 learner.zero_stage=3
  ballast train --config-dir my_conf algorithm=my_loss dry_run=true
  ballast eval runs/quickstart/final rollout.eval_samples_per_prompt=8
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ballast",
        description="Stable RL post-training of language models on Ray, vLLM and DeepSpeed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def overrides(command: argparse.ArgumentParser) -> None:
        command.add_argument("overrides", nargs="*", help="Hydra overrides, such as algorithm=dapo")
        command.add_argument("--config-dir", help="a folder with groups of your own")

    train = command("train", "Train a policy.")
    train.add_argument("--dry-run", action="store_true", help="print the plan and exit")
    overrides(train)
    evaluate = command("eval", "Score a model on held-out prompts: mean, pass@k and maj@k.")
    evaluate.add_argument("path", help="a Hugging Face folder, a run's folder or a checkpoint")
    evaluate.add_argument("--output", default="eval.json", help="where to write the scores")
    overrides(evaluate)
    data = command("data", "Generate a data group's prompt files and say where they are.")
    overrides(data)
    model = command("model", "Build a model group's folder and say where it is.")
    overrides(model)
    doctor = command("doctor", "Say whether a run could work on this machine, and what to mend.")
    overrides(doctor)
    check = command("check-algorithm", "Run the conformance kit on an algorithm.")
    overrides(check)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    options, more = build_parser().parse_known_args(arguments)
    if flags := [word for word in more if word.startswith("-")]:
        build_parser().error(f"unknown option {flags[0]}; overrides are written key=value")
    options.overrides += more  # overrides may stand after options, too
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a user's own modules, after everything installed
    # A shell starts background jobs with interrupts ignored; asked to stop, a run shall stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from hydra.errors import InstantiationException

    from orchestrator import commands

    run = getattr(commands, options.command.replace("-", "_"))
    try:
        return int(run(options))
    except InstantiationException as error:  # a part that refuses its values: its own words count
        print(f"ballast {options.command}: {error.__cause__ or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"ballast {options.command}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"ballast {options.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ballast {options.command}: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
