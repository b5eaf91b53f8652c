"""One rollout behind a real HTTP server, on an engine whose answers the test arranges."""

import asyncio
import json
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from workers.data.prompts import PromptEncoder
from workers.data.requests import Sample, Sampling
from workers.models.tokenizer import EOS, build_tokenizer
from workers.rollout.endpoint.conversation import Conversation
from workers.rollout.endpoint.rollout_calls import RolloutCalls
from workers.rollout.endpoint.server import Endpoint
from workers.rollout.environments.contract import Task
from workers.rollout.environments.guarded_play import EnvironmentClock
from workers.rollout.limits import RolloutLimits
from workers.rollout.session import Rollout
from workers.rollout.turn_texts import TurnTexts

TOKEN = "secret"


def encoder(folder):
    """Encoder of one character a token, with ChatML as its template."""
    build_tokenizer(model_max_length=4096).save_pretrained(folder)
    return PromptEncoder(folder, 512)


class Engine:
    """Answers with the next of `answers` and the end token; waits for `free` where one is given.

    An answer that is an exception is raised.
    """

    def __init__(self, encoder, *answers):
        self.encoder, self.answers = encoder, list(answers)
        self.asked: list[str] = []
        self.settings: list[tuple[int, Sampling]] = []  # number of the turn, and its bounds
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, tokens, turn, sampling, images):
        self.asked.append(self.encoder.decode(list(tokens)))
        self.settings.append((turn, sampling))
        answer = self.answers.pop(0)
        await self.free.wait()
        if isinstance(answer, Exception):
            raise answer
        ids = [*self.encoder.continuation(answer), *self.encoder.continuation(EOS)]
        cut = ids[: sampling.max_tokens]
        return Sample(
            tokens=cut,
            logprobs=[-0.5] * len(cut),
            weight_versions=[2] * len(cut),
            finish_reason="stop" if cut == ids else "length",
            text=answer[: len(cut)],
        )


@dataclass(kw_only=True)
class Served:
    """A rollout and the ways to call it."""

    url: str
    rollout: Rollout
    calls: RolloutCalls
    engine: Engine
    statuses: list[int] = field(default_factory=list)

    async def post(self, path, body, *, token=TOKEN, **headers):
        """Status and body of the answer to a request of a client of the standard library."""
        return await asyncio.to_thread(self._post, path, body, token, headers)

    def _post(self, path, body, token, headers):
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            data=body if isinstance(body, bytes) else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=20.0) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    async def chat(self, messages, **parameters):
        """The choice of a chat completion, which must succeed."""
        status, text = await self.post(
            "chat/completions", {"model": "m", "messages": messages, **parameters}
        )
        assert status == 200, text
        return json.loads(text)["choices"][0]

    async def complete(self, prompt, **parameters):
        """The text of a completion, which must succeed."""
        status, text = await self.post(
            "completions", {"model": "m", "prompt": prompt, **parameters}
        )
        assert status == 200, text
        return json.loads(text)["choices"][0]["text"]

    def rows(self):
        """The rows as texts, and the texts that they train."""
        found = []
        decode = self.engine.encoder.decode
        for row in self.rollout.rows():
            trained = [
                decode(row.tokens[span.start : span.end])
                for span in row.turns
                if all(row.loss_mask[span.start : span.end])
            ]
            assert sum(row.loss_mask) == sum(span.end - span.start for span in row.turns)
            found.append((decode(row.tokens), trained))
        return found


@asynccontextmanager
async def served(engine, prompt, *, reader=None, max_calls=100, max_body_bytes=100_000, **limits):
    """Serves one rollout of `prompt`."""
    texts = TurnTexts(engine.encoder)
    rollout = Rollout(
        Task(uid="p:0", prompt=prompt, ground_truth=None),
        texts.opening(prompt, None)[0],
        sampling=Sampling(max_tokens=400),
        limits=RolloutLimits(**{"max_turns": 8, **limits}),
        texts=texts,
        sample=engine,
        clock=EnvironmentClock(stretch_s=60.0),
    )
    calls = RolloutCalls(
        token=TOKEN,
        conversation=Conversation(rollout.first, prompt, reader=reader),
        max_calls=max_calls,
        over=asyncio.get_running_loop().create_future(),
    )
    endpoint = Endpoint(max_body_bytes=max_body_bytes)
    await endpoint.start("127.0.0.1")
    url = endpoint.open(calls)
    try:
        yield Served(url=url, rollout=rollout, calls=calls, engine=engine)
    finally:
        await endpoint.close(url)
        await endpoint.stop()
