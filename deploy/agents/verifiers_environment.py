"""Play a task of a `verifiers` environment (0.4): its harness, its tools, its rewards.

    /venvs/hub/bin/python verifiers_environment.py TASKSET [--env JSON]

with the environment's settings as JSON, for instance
{"agent": {"runtime": {"type": "subprocess"}, "harness": {"id": "null"}}}.

An agent of `environment=agent`: one process for each rollout, in an environment where `verifiers`
and the taskset's package are installed (their pins are not Ballast's). The policy is the model of
every agent of the environment. The task is the one whose number is in the row's column
`task_index`, or else has the row's own number. The sum of the task's weighted rewards, averaged
over agents, is the rollout's reward.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys


def environment_of(taskset, settings):
    """Return the environment of a taskset, and the configuration of its agents' model."""
    import verifiers.v1 as vf
    from verifiers.v1.utils.loaders import load_environment, resolve_env_config

    named = {**settings, "taskset": {**settings.get("taskset", {}), "id": taskset}}
    client = vf.EvalClientConfig(
        base_url=os.environ["OPENAI_BASE_URL"], api_key_var="OPENAI_API_KEY"
    )
    context = vf.ModelContext(model="policy", client=client)
    return load_environment(resolve_env_config(named)), context


def number_of(task):
    """Return the number of the taskset's task that a row stands for."""
    index = task["columns"].get("task_index")
    return int(task["uid"].rpartition(":")[2] if index is None else index)


async def play(environment, context, number):
    """Play one episode; return the result that Ballast reads.

    Raises:
        RuntimeError: the taskset has no such task, or the episode failed.
    """
    chosen = next(itertools.islice(environment.taskset, number, None), None)
    if chosen is None:
        raise RuntimeError(f"the taskset has no task number {number}")
    async with environment.serving():
        episode = await environment.run_episode(chosen, context)
    faults = [*episode.errors, *(fault for trace in episode.traces for fault in trace.errors)]
    if not episode.ok:
        raise RuntimeError("; ".join(f"{fault.type}: {fault.message}" for fault in faults))
    parts = {}
    for trace in episode.traces:
        parts.update({name: one.value for name, one in trace.rewards.items() if one is not None})
        parts.update({name: one for name, one in trace.metrics.items() if one is not None})
    total = sum(trace.reward for trace in episode.traces)
    return {"reward": total / len(episode.traces), "parts": parts}


def main():
    """Play the rollout's task and write its reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("taskset", help="installed taskset package")
    parser.add_argument("--env", type=json.loads, default={}, help="JSON of its `[env]` block")
    options = parser.parse_args()
    with open(os.environ["BALLAST_TASK"]) as file:
        task = json.load(file)
    environment, context = environment_of(options.taskset, options.env)
    result = asyncio.run(play(environment, context, number_of(task)))
    with open(os.environ["BALLAST_RESULT"], "w") as file:
        json.dump(result, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
