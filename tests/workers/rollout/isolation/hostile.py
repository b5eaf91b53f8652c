"""An environment that plays as the row's column `how` says, in a process of its own."""

import asyncio
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

from workers.reward.child import HEADER
from workers.rollout.environments.contract import Outcome, SpentError

BUILT = [0]  # in this process


class WordlessError(Exception):
    """No other process has this class, and it has no text."""

    def __init__(self, one, two):
        super().__init__(threading.Lock())

    def __str__(self):
        raise KeyError("no text")


class ToldError(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")


def sockets():
    """Descriptors of sockets that this process holds."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket"):
                found.append(descriptor)
    return found


def own_socket():
    """The descriptor over which this process talks to the worker."""
    return max(sockets())  # the event loop has the pair of lower numbers


class Elsewhere:
    """An environment that can be built in one process only."""

    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        raise OSError("not in this process")


class Plays:
    def __init__(self):
        BUILT[0] += 1

    async def play(self, task, session):
        return await getattr(self, task.columns["how"])(session)

    async def says_its_id(self, session):
        return Outcome(reward=float(os.getpid()))

    async def describes_itself(self, session):
        open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
        notes = {
            "folder": os.getcwd(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "stdin": open_files[0],
            "same": str(open_files[1] == open_files[2]),
            "sockets": str(len(sockets())),
            "built": str(BUILT[0]),
            "heavy": str([name for name in ("vllm", "torch", "ray") if name in sys.modules]),
        }
        return Outcome(reward=1.0, notes=notes)

    async def walks(self, session):
        await session.reopen("go:")
        await session.observe([{"role": "user", "content": "+"}])
        first = await session.draw(max_tokens=2)
        session.observe_tokens([ord("-")])
        other = session.branch(len(session.tokens))
        assert other.may_draw
        second = await other.draw(state="s", stop=("!",))
        try:
            await session.observe([{"role": "user", "content": "x" * 200}])
        except ValueError as error:
            return Outcome(reward=0.5, response=first.text + second.text, notes={"e": str(error)})

    async def exits(self, session):
        await session.draw()
        os._exit(3)

    async def crashes(self, session):
        await session.draw()
        ctypes.string_at(0)

    async def is_killed(self, session):
        await session.draw()
        os.kill(os.getpid(), signal.SIGKILL)

    async def forks_and_exits(self, session):
        if os.fork() == 0:
            time.sleep(60)
        os._exit(4)

    async def hangs(self, session):
        await session.draw()
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock

    async def asks_and_hangs(self, session):
        """Many answers that this process never reads."""
        asking = [threading.Thread(target=lambda: session.tokens) for _ in range(50)]
        for thread in asking:
            thread.start()
        ctypes.PyDLL(None).sleep(60)

    async def swallows(self, session):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    async def starts_another(self, session):
        started = subprocess.Popen(["sleep", "60"])
        with suppress(asyncio.CancelledError):
            await session.observe([{"role": "user", "content": str(started.pid)}])
        await self.swallows(session)

    async def waits(self, session):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            error.add_note(f"in room {os.getpid()}")
            raise

    async def draws_with_a_limit(self, session):
        try:
            await asyncio.wait_for(session.draw(), 0.05)
        except TimeoutError:
            return Outcome(reward=1.0)

    async def leaves_a_thread(self, session):
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
        return Outcome(reward=float(os.getpid()))

    async def writes_too_much(self, session):
        await session.observe([{"role": "user", "content": "x" * 3_000_000}])

    async def returns_too_much(self, session):
        return Outcome(reward=1.0, response="x" * 3_000_000)

    async def promises_too_much(self, session):
        os.write(own_socket(), HEADER.pack(1 << 40))
        await asyncio.sleep(60)

    async def sends_a_class(self, session):
        body = pickle.dumps(("call", Outcome(), 0, "tokens", ()))
        os.write(own_socket(), HEADER.pack(len(body)) + body)
        await asyncio.sleep(60)

    async def sends_nonsense(self, session):
        body = pickle.dumps(("call", [1]))
        os.write(own_socket(), HEADER.pack(len(body)) + body)
        await asyncio.sleep(60)

    async def sends_one_call_twice(self, session):
        body = pickle.dumps(("call", 7, 0, "tokens", ()))
        os.write(own_socket(), 2 * (HEADER.pack(len(body)) + body))
        await asyncio.sleep(60)

    async def calls_without_an_end(self, session):
        while True:
            await asyncio.gather(*(session.draw() for _ in range(500)), return_exceptions=True)

    async def raises_a_wordless_error(self, session):
        raise WordlessError(1, 2)

    async def raises_its_own_error(self, session):
        raise ToldError("five is even")

    async def leaves(self, session):
        sys.exit("bye")

    async def is_spent(self, session):
        raise SpentError("enough")

    async def draws_until_it_is_spent(self, session):
        while True:
            await session.draw()

    async def returns_a_lock(self, session):
        return Outcome(reward=threading.Lock())

    async def returns_a_mapping(self, session):
        return {"reward": 1.0}

    async def names_the_error(self, session):
        try:
            await session.draw()
        except Exception as error:
            kinds = ",".join(kind.__name__ for kind in type(error).__mro__[:3])
            return Outcome(reward=0.0, notes={"kinds": kinds, "text": str(error)})


async def two_turns(task, session):
    """Two turns; the third sibling ends its process behind the first where the row wants it."""
    first = await session.draw()
    if task.ground_truth == "deadly" and task.sibling == 2:
        os._exit(3)
    await session.observe([{"role": "user", "content": "+"}])
    second = await session.draw()
    return Outcome(reward=float(len(first.text)), response=second.text)
