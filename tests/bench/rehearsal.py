"""A run of 512 engines rehearsed: what the driver takes, and what each schedule makes of the GPUs.

    python tests/bench/rehearsal.py [--prompts 8192] [--samples 16] [--gpus 640] [--ratios 4,2,1]

What it is: `ballast rehearse` at the size of a large job, 8,192 prompts x 16 samples a step with
log-normal lengths whose tail ends at 32,000 tokens; a process of its own for every row, so that its
peak memory (the driver's, the metadata in flight and the simulation together) and its driver's CPU
share of the simulated time are its own. What it is not: a measure of engines or of a learner, whose
speeds are the assumptions of `conf/rehearsal/default.yaml`, nor of Ray, whose calls are not made.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.rehearsal.comparison import SCHEDULES, divisions, overrides
from orchestrator.rehearsal.figures import Figures, figures, table
from orchestrator.rehearsal.run import peak_memory_bytes, rehearse

SIZE = [
    "algorithm=rloo",
    "model=qwen25_7b",
    "cluster=nodes_64",
    "rollout.dtype=bfloat16",
    "rollout.max_model_len=32768",
    "rollout.sampling.max_new_tokens=32000",
    "rollout.max_num_seqs=128",
    "data.max_prompt_tokens=512",
    "learner.zero_stage=3",
    "learner.gradient_checkpointing=true",
    "learner.token_budget=32768",
    "critic.token_budget=32768",
    "rehearsal.num_prompts=65536",
]


def one(arguments: list[str]) -> tuple[Figures, int]:
    """A row, and the peak memory of this process."""
    torch.set_num_threads(1)
    raw, config = compose(arguments)
    moments = rehearse(config, instantiate(raw.algorithm, _convert_="all"))
    return figures(config, moments), peak_memory_bytes()


def main() -> None:
    """Prints the table, row by row, and the worst of memory and CPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8192, help="of a step")
    parser.add_argument("--samples", type=int, default=16, help="of a prompt")
    parser.add_argument("--steps", type=int, default=5, help="the first is not counted")
    parser.add_argument("--gpus", type=int, default=640, help="engines and learner ranks together")
    parser.add_argument("--ratios", default="4,2,1", help="GPUs that sample to GPUs that learn")
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=SCHEDULES)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the configuration")
    options = parser.parse_args()
    base = [
        *SIZE,
        f"trainer.total_steps={options.steps}",
        f"trainer.prompts_per_step={options.prompts}",
        f"rollout.samples_per_prompt={options.samples}",
        f"cluster.num_nodes={options.gpus // 8}",
        *options.overrides,
    ]
    _, config = compose([*base, *overrides("sync", options.gpus - 1, 1)])
    rows: list[Figures] = []
    peaks: list[int] = []
    for pair in divisions(config, options.ratios):
        for schedule in options.schedules:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                row, peak = process.submit(one, [*base, *overrides(schedule, *pair)]).result()
            rows.append(row)
            peaks.append(peak)
            print(table([row]) if len(rows) == 1 else table([row]).splitlines()[-1], flush=True)
    print(
        f"\npeak memory {max(peaks) / 2**30:.2f} GiB, driver CPU at most "
        f"{max(row.driver_frac for row in rows):.2%} of the simulated time, simulation itself "
        f"{sum(row.simulation_s for row in rows):.0f} s of CPU for {len(rows)} rows"
    )


if __name__ == "__main__":
    main()
