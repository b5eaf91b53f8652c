"""Play an environment that is served over the network: `reset`, then `step` until it is done.

    python reset_step.py http://games:8000 --action message --observation text
    python reset_step.py ws://games:8000/ws --action guess

An agent of `environment=agent`: one process for each rollout, in any Python from 3.9 on. Each
action is an answer of the policy to the observations so far, asked for over OpenAI's chat
completions.

`http://`: POST /reset and /step with JSON, a server that keeps sessions by `episode_id` (NeMo Gym's
and Gymnasium's style). Standard library only.
`ws://`: the sessions of an OpenEnv server, whose plain `/step` keeps no state. Needs the package
`websockets`, which OpenEnv installs.

Both answer {"observation": ..., "reward": number or null, "done": true or false}. The reward of the
rollout is the sum of all rewards, which are its turn rewards too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager


def post(url, body, headers=None):
    """Return the JSON that a server answers to a JSON body."""
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


class HttpSession:
    """Episode of a server that knows episodes by their ids."""

    def __init__(self, url):
        self.url, self.episode = url.rstrip("/"), uuid.uuid4().hex

    def reset(self, options):
        """Begin the episode; return the first observation, a reward and the end."""
        return post(f"{self.url}/reset", {"episode_id": self.episode, **options})

    def step(self, action):
        """Act; return the next observation, a reward and the end."""
        return post(f"{self.url}/step", {"episode_id": self.episode, "action": action})


class SocketSession:
    """Episode of an OpenEnv server, which lasts as long as the connection."""

    def __init__(self, socket):
        self.socket = socket

    def reset(self, options):
        """See `HttpSession`."""
        return self._ask({"type": "reset", "data": options})

    def step(self, action):
        """See `HttpSession`."""
        return self._ask({"type": "step", "data": action})

    def _ask(self, message):
        self.socket.send(json.dumps(message))
        answer = json.loads(self.socket.recv())
        if answer.get("type") != "observation":
            raise RuntimeError(f"the environment answered {answer}")
        return answer["data"]


@contextmanager
def session_of(url):
    """Open an episode."""
    if url.startswith("http"):
        yield HttpSession(url)
        return
    from websockets.sync.client import connect

    with connect(url, max_size=None) as socket:
        yield SocketSession(socket)


def text_of(observation, field):
    """Return what the policy sees of an observation."""
    if field and isinstance(observation, dict):
        observation = observation[field]
    return observation if isinstance(observation, str) else json.dumps(observation)


def answer(messages):
    """Return the policy's next message; None where the rollout's budget is spent."""
    try:
        completion = post(
            os.environ["OPENAI_BASE_URL"] + "/chat/completions",
            {"model": "policy", "messages": messages},
            {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
        )
    except urllib.error.HTTPError as error:
        if error.code == 400 and json.load(error)["error"]["code"] == "budget_spent":
            return None
        raise
    return completion["choices"][0]["message"]["content"]


def play(session, options, task):
    """Play one episode; return the reward of each turn."""
    prompt = task["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    messages = messages if options.keep_prompt else []
    state, rewards = session.reset(task["columns"].get("reset") or {}), []
    while not state.get("done"):
        seen = text_of(state["observation"], options.observation)
        messages.append({"role": "user", "content": seen})
        said = answer(messages)
        if said is None:
            break
        messages.append({"role": "assistant", "content": said})
        state = session.step({options.action: said})
        rewards.append(float(state.get("reward") or 0.0))
    return rewards


def main():
    """Play the rollout's episode and write its reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of the environment: http://... or ws://.../ws")
    parser.add_argument("--action", default="message", help="field of an action with the answer")
    parser.add_argument(
        "--observation", help="field of an observation to show; all where not given"
    )
    parser.add_argument("--keep-prompt", action="store_true", help="show the row's prompt first")
    options = parser.parse_args()
    with open(os.environ["BALLAST_TASK"]) as file:
        task = json.load(file)
    with session_of(options.url) as session:
        rewards = play(session, options, task)
    result = {"reward": sum(rewards), "turn_rewards": rewards}
    with open(os.environ["BALLAST_RESULT"], "w") as file:
        json.dump(result, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
