"""Agents end with all that they started, whatever they do, and cost the event loop nothing."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from workers.rollout.endpoint.agent_process import AgentJob, KeeperDiedError, running_agent

TASK = {"uid": "train:7", "prompt": "2+3=", "ground_truth": "5", "columns": {}}


def job(program, **variables):
    return AgentJob(
        command=(sys.executable, "-S", "-c", program),
        variables={str(name): str(value) for name, value in variables.items()},
        task=TASK,
    )


async def run_agent(job, *, until=()):
    """The end of an agent, which is ended once the files `until` are there."""
    async with running_agent(job) as agent:
        while until and not all(path.exists() for path in until):
            await asyncio.sleep(0.01)
        return await (agent.end() if until else agent.exited)


def run(program, **variables):
    return asyncio.run(run_agent(job(program, **variables)))


def gone(process):
    """True once a process has ended, within two seconds."""
    for _ in range(200):
        if not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie":
            return True
        time.sleep(0.01)
    return False


def test_an_agent_reads_its_task_and_its_result_comes_back():
    ended = run(
        "import json, os; task = json.load(open(os.environ['BALLAST_TASK']));"
        "open(os.environ['BALLAST_RESULT'], 'w').write(json.dumps([task['uid'], os.getcwd()]));"
        "print('seen', os.environ['OPENAI_API_KEY'])",
        OPENAI_API_KEY="k",
    )
    uid, folder = json.loads(ended.result)
    assert (ended.code, uid, ended.tail) == (0, "train:7", "seen k\n")
    assert not Path(folder).exists()


def test_an_agent_sees_no_variable_of_the_worker(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run("import os; print(os.environ.get('HF_TOKEN'))").tail == "None\n"


def test_exit_code_and_the_end_of_the_output_of_an_agent_that_dies():
    ended = run("import sys; print('x' * 100_000); sys.stderr.write('no key'); sys.exit(3)")
    assert ended.code == 3
    assert len(ended.tail) == 2000 and ended.tail.endswith("x\nno key")
    assert run("import os; os.kill(os.getpid(), 9)").code == -9


def test_a_command_that_is_not_there_is_said_so():
    missing = AgentJob(command=("/no/such",), variables={}, task=TASK)
    ended = asyncio.run(run_agent(missing))
    assert ended.code is None and "can't be started" in ended.tail and "/no/such" in ended.tail


ESCAPES = """
import os, sys, time
def child(path):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(path + "+", "w").write(str(os.getpid())); os.rename(path + "+", path)
            time.sleep(60)
        os._exit(0)
child(sys.argv[1] + "/a"); child(sys.argv[1] + "/b")
while not all(os.path.exists(sys.argv[1] + "/" + name) for name in "ab"): time.sleep(0.01)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("sleeps", ["0", "60"])
def test_what_an_agent_left_behind_ends_with_it(tmp_path, sleeps):
    """Grandchildren in sessions of their own, whose parents have ended."""
    escaping = AgentJob(
        command=(sys.executable, "-S", "-c", ESCAPES, str(tmp_path), sleeps),
        variables={},
        task=TASK,
    )
    files = [tmp_path / "a", tmp_path / "b"]
    ended = asyncio.run(run_agent(escaping, until=files if sleeps == "60" else ()))
    assert ended.code == {"0": 0, "60": None}[sleeps]
    assert all(gone(int((tmp_path / name).read_text())) for name in "ab")


def test_a_tree_that_starts_processes_without_end_is_ended(tmp_path):
    """Each process starts another and ends: a chain that a slow killer never catches."""
    chain = (
        f"import os, time\npath = {str(tmp_path / 'ids')!r}\n"
        "if os.fork():\n"
        "  while not os.path.exists(path) or os.path.getsize(path) < 50: time.sleep(0.01)\n"
        "  os._exit(0)\n"
        "while True:\n"
        "  if os.fork(): os._exit(0)\n"
        "  open(path, 'a').write(f'{os.getpid()}\\n'); time.sleep(0.001)"
    )
    began = time.monotonic()
    run(chain)
    assert time.monotonic() - began < 8.0
    assert all(gone(int(line)) for line in (tmp_path / "ids").read_text().split())


def test_a_cancelled_wait_ends_the_agent(tmp_path):
    async def cancel():
        program = f"import os, time; open({str(tmp_path / 'id')!r}, 'w').write(str(os.getpid()))"
        task = asyncio.create_task(run_agent(job(f"{program}; time.sleep(60)")))
        while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert gone(int((tmp_path / "id").read_text()))


def test_an_agent_that_is_ended_says_what_it_did(tmp_path):
    began = tmp_path / "began"
    program = f"print('half', flush=True); open({str(began)!r}, 'w'); import time; time.sleep(60)"
    ended = asyncio.run(run_agent(job(program), until=[began]))
    assert (ended.code, ended.tail) == (None, "half\n")


def test_a_worker_that_is_killed_takes_its_agents_along(tmp_path):
    program = f"import os, time; open({str(tmp_path / 'id')!r}, 'w').write(str(os.getpid()))"
    worker = (
        "import asyncio, sys\n"
        "from workers.rollout.endpoint.agent_process import AgentJob, running_agent\n"
        f"program = {program + '; time.sleep(60)'!r}\n"
        "async def work():\n"
        "  command = (sys.executable, '-S', '-c', program)\n"
        "  job = AgentJob(command=command, variables={}, task={})\n"
        "  async with running_agent(job) as agent: await agent.exited\n"
        "asyncio.run(work())"
    )
    owner = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", worker],
        {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        for _ in range(1000):
            if (tmp_path / "id").exists() and (tmp_path / "id").read_text():
                break
            time.sleep(0.01)
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert gone(int((tmp_path / "id").read_text()))


def test_an_agent_that_ends_its_keeper_is_an_error():
    with pytest.raises(KeeperDiedError):
        run("import os; os.kill(os.getppid(), 9)")


def test_a_flood_of_output_costs_the_event_loop_nothing(tmp_path):
    async def watch():
        flood = f"import os; open({str(tmp_path / 'began')!r}, 'w')\n"
        async with running_agent(job(flood + "while True: os.write(1, b'x' * 65536)")) as agent:
            while not (tmp_path / "began").exists():
                await asyncio.sleep(0.01)
            before = time.thread_time()
            await asyncio.sleep(1.0)
            used = time.thread_time() - before
            return (await agent.end()).tail, used

    tail, used = asyncio.run(watch())
    assert tail == "x" * 2000
    assert used < 0.1  # seconds of the processor, of one second
