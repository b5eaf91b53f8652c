"""Ballast beside TRL, and beside vLLM alone and a plain loop as limits, on the same work.

    python tests/bench/peers.py [--work a b c] [--rounds 3] [--steps N] [--only Ballast TRL]
    python tests/bench/peers.py --picture peers.png

What it is: three works (`programs/works.py`: the quickstart, longer prompts and answers, the tiny
experiment), each done by four programs in turn, round by round, on the same cores, with the same
model folder, prompts, reward, loss, learning rate, precision and number of updates:

    Ballast      its console command
    TRL          its GRPO trainer, in an environment of its own (requirements-trl.txt)
    plain loop   transformers' generate, a padded pass, AdamW, one process: programs/plain_loop.py
    vLLM alone   AsyncLLM samples such a batch, with nothing around it; nothing is trained

It prints medians over the rounds with the lowest and highest: seconds of a step, by the clock and
of a core (which other work on the machine changes less), tokens/s (prompt and response of every
sample), seconds to a reward of 0.9, the highest memory of the program and all
that it started, the curves of the rewards, and where Ballast's seconds go. What it is not: a
comparison on GPUs or of several machines.

A run is kept in the file of `--results` and not repeated, so an interrupted comparison goes on
where it stopped; delete the file to measure anew.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from programs.outcomes import Outcome, append, curve, draw, phases, read, table
from programs.running import Setting, prepare_trl, sample_alone, train_ballast, train_beside
from programs.usage import watched
from programs.works import Work, works

from conf.precision import has_bf16
from workers.models.cache import cache_dir

BALLAST, TRL, LOOP, VLLM = "Ballast", "TRL", "plain loop", "vLLM alone"
PROGRAMS = (BALLAST, TRL, LOOP, VLLM)


def measure(program: str, work: Work, number: int, options: argparse.Namespace) -> Outcome:
    """Run one program once."""
    setting = Setting(
        work=work,
        steps=options.steps or work.steps,
        threads=options.threads,
        limit_s=options.limit_s,
    )
    python = prepare_trl(options.venv.expanduser().absolute()) if program == TRL else None
    setting.composed  # noqa: B018  model and prompts exist before a clock runs
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, watched() as usage:
        folder = Path(name)
        if program == BALLAST:
            found = train_ballast(setting, folder)
        elif program == VLLM:
            found = sample_alone(setting)
        elif python is not None:
            found = train_beside(python, "trl_grpo.py", setting, folder)
        else:
            found = train_beside(Path(sys.executable), "plain_loop.py", setting, folder)
    ends = [found["first_step"], *found["ends"]]
    used_s = usage.used_until(ends[-1]) - usage.used_until(ends[work.warm_up])
    return Outcome(
        work=work.name,
        program=program,
        round=number,
        threads=setting.threads,
        steps=setting.steps,
        warm_up=work.warm_up,
        start_s=found["first_step"] - found["began"],
        seconds=tuple(after - before for before, after in itertools.pairwise(ends)),
        tokens=tuple(found["tokens"]),
        rewards=tuple(found["rewards"]),
        core_s=used_s / (len(ends) - 1 - work.warm_up),
        peak_bytes=usage.peak_bytes,
        load=load,
        phases=found.get("phases", {}),
    )


def machine() -> str:
    """Name this machine's CPU, its cores and its precision."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bf16 = "with" if has_bf16() else "without"
    cores = len(os.sched_getaffinity(0))
    return f"{models[0] if models else 'unknown CPU'}, {cores} cores, {bf16} bfloat16 instructions"


def report(outcomes: Sequence[Outcome], chosen: dict[str, Work]) -> str:
    """Return the tables, and the curves of each work's first round."""
    parts = [machine()]
    for work in chosen.values():
        own = [outcome for outcome in outcomes if outcome.work == work.name]
        if not own:
            continue
        loads = [outcome.load for outcome in own]
        parts.append(
            f"\n**{work.name}**, {work.title}; {own[0].steps} steps, of which "
            f"{work.warm_up} to warm up; load before a run {min(loads):.1f} to {max(loads):.1f}\n"
            f"\n{table(own, PROGRAMS)}\n"
        )
        for program in PROGRAMS:
            runs = [outcome for outcome in own if outcome.program == program and outcome.rewards]
            parts += [f"{program}: reward {curve(run.rewards)}" for run in runs[:1]]
        told = [outcome for outcome in own if outcome.phases]
        parts += [f"a step of {BALLAST}: {phases(told)}"] if told else []
    return "\n".join(parts)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names, cores = ("a", "b", "c"), len(os.sched_getaffinity(0))
    parser.add_argument("--work", nargs="+", choices=names, default=list(names))
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=1, help="of all programs, one after another")
    parser.add_argument("--steps", type=int, help="of a run, for each chosen work; its own if left")
    parser.add_argument("--threads", type=int, default=cores, help="of each program's mathematics")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="seconds of one run")
    parser.add_argument("--venv", type=Path, default=cache_dir("bench") / "trl", help="of TRL")
    parser.add_argument("--results", type=Path, default=cache_dir("bench") / "peers.jsonl")
    parser.add_argument("--picture", type=Path, help="draw the rewards of all results there")
    return parser.parse_args()


def main() -> int:
    """Measure what the results lack, print the tables."""
    options = parse()
    found = works(cache_dir("bench") / "rows")
    chosen = {name: found[name] for name in options.work}
    for work in chosen.values():
        steps = options.steps or work.steps
        if steps <= work.warm_up:
            print(f"--steps {steps} leaves nothing to count in work {work.name}: give more")
            return 2
    for number, work, program in itertools.product(
        range(1, options.rounds + 1), chosen.values(), options.only
    ):
        steps = options.steps or work.steps
        done = {outcome.key for outcome in read(options.results)}
        if (work.name, program, number, options.threads, steps) in done:
            continue
        print(f"round {number}, work {work.name}: {program}", flush=True)
        append(options.results, measure(program, work, number, options))
    outcomes = [
        one
        for one in read(options.results)
        if one.work in chosen and one.threads == options.threads
        if one.steps == (options.steps or chosen[one.work].steps)
    ]
    print(report(outcomes, chosen))
    if options.picture:
        draw(outcomes, {work.name: work.title for work in chosen.values()}, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
