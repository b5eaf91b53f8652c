"""The wire: tokens, refusals by name, limits, streams, and calls that are sent again."""

import asyncio
import json

import pytest

from tests.workers.rollout.endpoint.served import Engine, encoder, served
from workers.rollout.endpoint.rollout_calls import FloodError

QUESTION = [{"role": "user", "content": "guess"}]
CHAT = {"model": "m", "messages": QUESTION}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("tokenizer"))


def run(tokens, work, *answers, prompt=QUESTION, **limits):
    async def play():
        async with served(Engine(tokens, *(answers or "4")), prompt, **limits) as own:
            return await work(own)

    return asyncio.run(play())


def test_an_answer_has_the_shape_and_the_counts_of_openai(tokens):
    async def work(own):
        return await own.post("chat/completions", CHAT)

    status, text = run(tokens, work)
    answer = json.loads(text)
    assert (status, answer["object"], answer["model"]) == (200, "chat.completion", "m")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "4"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    # user, newline, guess, end, newline, opening: 1 + 5 + 5 + 1 + 1 + 1 + 10 characters
    assert answer["usage"] == {"prompt_tokens": 24, "completion_tokens": 2, "total_tokens": 26}


def test_the_limit_of_a_call_cuts_its_turn(tokens):
    async def work(own):
        return await own.chat(QUESTION, max_completion_tokens=3)

    choice = run(tokens, work, "12345")
    assert (choice["message"]["content"], choice["finish_reason"]) == ("123", "length")


def test_a_stream_has_the_turn_in_one_event_and_its_counts(tokens):
    async def work(own):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return await own.post("chat/completions", {**CHAT, **options})

    _, text = run(tokens, work)
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    said, ended, counted = map(json.loads, events[:-1])
    assert events[-1] == "[DONE]"
    assert said["choices"][0]["delta"] == {"role": "assistant", "content": "4"}
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert (counted["choices"], counted["usage"]["completion_tokens"]) == ([], 2)


def test_a_stream_of_text(tokens):
    async def work(own):
        return await own.post("completions", {"prompt": "guess", "stream": True})

    _, text = run(tokens, work, prompt="guess")
    first, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert (json.loads(first)["choices"][0]["text"], last) == ("4", "[DONE]")


@pytest.mark.parametrize("token", ["", "wrong", "sécret"])
def test_without_the_token_of_the_session_nothing_is_answered(tokens, token):
    async def work(own):
        found = await own.post("chat/completions", CHAT, token=token)
        return found, own.calls.num_calls

    (status, text), counted = run(tokens, work)
    assert (status, json.loads(text)["error"]["code"], counted) == (401, "unauthorized", 0)


def test_another_session_and_a_closed_one_are_refused(tokens):
    async def work(own):
        own.url = own.url[:-4] + "0000"
        return await own.post("chat/completions", CHAT)

    assert run(tokens, work)[0] == 401


def test_the_list_of_models(tokens):
    async def work(own):
        import urllib.request

        request = urllib.request.Request(f"{own.url}/v1/models", headers={"x-api-key": "secret"})
        return await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=9).read())

    assert [one["id"] for one in json.loads(run(tokens, work))["data"]] == ["policy"]


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "4"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages"),
        ({"messages": ["x"]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tokens, changed, param):
    async def work(own):
        found = await own.post("chat/completions", {**CHAT, **changed})
        return found, own.engine.asked

    (status, text), asked = run(tokens, work)
    assert (status, json.loads(text)["error"]["param"], asked) == (400, param, [])


def test_sampling_is_the_run_s_whatever_the_agent_asks_for(tokens):
    async def work(own):
        return await own.chat(QUESTION, temperature=0.2, top_p=0.5, seed=9, n=1, logprobs=False)

    assert run(tokens, work)["message"]["content"] == "4"


@pytest.mark.parametrize("body", [b"no json", b"[]", b"\xff\xfe", b"[" * 50_000])
def test_a_body_that_is_no_object_is_refused(tokens, body):
    async def work(own):
        return await own.post("chat/completions", body)

    status, text = run(tokens, work)
    assert status == 400 and "body" in json.loads(text)["error"]["message"]


def test_a_body_beyond_the_limit_is_refused(tokens):
    async def work(own):
        return await own.post("chat/completions", b"x" * 3000)

    status, text = run(tokens, work, max_body_bytes=2000)
    assert (status, json.loads(text)["error"]["code"]) == (413, "http_413")


def test_a_path_that_is_not_served(tokens):
    async def work(own):
        return await own.post("embeddings", {})

    status, text = run(tokens, work)
    assert (status, json.loads(text)["error"]["code"]) == (404, "http_404")


def test_a_flood_of_calls_ends_the_rollout(tokens):
    async def work(own):
        statuses = [(await own.post("chat/completions", b"no json"))[0] for _ in range(4)]
        after = await own.post("chat/completions", CHAT)
        with pytest.raises(FloodError, match="more than 3 requests"):
            own.calls.over.result()
        return statuses, json.loads(after[1])["error"]["code"]

    statuses, code = run(tokens, work, max_calls=3)
    assert (statuses, code) == ([400] * 4, "too_many_calls")


def test_a_budget_that_is_spent_is_said_so(tokens):
    async def work(own):
        await own.chat(QUESTION)
        return await own.post("chat/completions", CHAT)

    status, text = run(tokens, work, max_turns=1)
    assert (status, json.loads(text)["error"]["code"]) == (400, "budget_spent")


def test_a_fault_of_the_engine_ends_the_rollout_with_that_fault(tokens):
    async def work(own):
        status, text = await own.post("chat/completions", CHAT)
        with pytest.raises(OSError, match="gone"):
            own.calls.over.result()
        return status, json.loads(text)["error"]["code"]

    assert run(tokens, work, OSError("gone")) == (503, "rollout_over")


def test_an_equal_call_while_the_first_is_answered_is_the_same_call(tokens):
    async def work(own):
        own.engine.free.clear()
        calls = [asyncio.create_task(own.chat(QUESTION)) for _ in range(3)]
        while own.calls.num_calls < 3:
            await asyncio.sleep(0.01)
        own.engine.free.set()
        answers = [choice["message"]["content"] for choice in await asyncio.gather(*calls)]
        return answers, len(own.engine.asked)

    assert run(tokens, work, "4", "5", "6") == (["4"] * 3, 1)


def test_a_key_names_a_call_for_ever(tokens):
    async def work(own):
        same = {"Idempotency-Key": "a"}
        found = [await own.post("chat/completions", CHAT, **same) for _ in range(2)]
        other = await own.post("chat/completions", CHAT, **{"Idempotency-Key": "b"})
        clash = await own.post("chat/completions", {**CHAT, "max_tokens": 3}, **same)
        contents = [json.loads(text)["choices"][0] for _, text in (*found, other)]
        return [choice["message"]["content"] for choice in contents], clash[0]

    assert run(tokens, work, "4", "5") == (["4", "4", "5"], 422)


def test_an_agent_that_hung_up_gets_the_same_answer_when_it_asks_again(tokens):
    async def work(own):
        own.engine.free.clear()
        host, _, rest = own.url.removeprefix("http://").partition("/")
        address, _, port = host.rpartition(":")
        body = json.dumps(CHAT).encode()
        _, writer = await asyncio.open_connection(address, int(port))
        head = f"POST /{rest}/v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer"
        writer.write(f"{head} secret\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        while not own.engine.asked:
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        own.engine.free.set()
        await asyncio.sleep(0.05)
        choice = await own.chat(QUESTION)
        return choice["message"]["content"], len(own.engine.asked)

    assert run(tokens, work, "4", "5") == ("4", 1)
