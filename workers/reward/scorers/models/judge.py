"""Score with language models behind OpenAI-compatible services: each response, or siblings at once.

Runs in a scoring process. A Jinja template makes the prompt, the judge answers with JSON that fits
a schema, and the reward is the mean over judges and repeats. A call without a verdict fails the
samples, and is never a reward of zero. Starts no model.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from workers.reward.base import RewardSample
from workers.reward.scorers.models.calls import CallFile, JudgeCall, key_of
from workers.reward.scorers.models.judge_model import JudgeEngines, JudgeModel
from workers.reward.scorers.models.templates import ALONE, TOGETHER, check_template, template_of
from workers.reward.scorers.models.verdicts import (
    RANKING,
    SCORE,
    SCORES,
    read_verdict,
    rewards_of,
    verdict_schema,
)
from workers.reward.service import MAX_OPEN, Pace, Patience, connections, headers_of, post

__all__ = ["Judge", "JudgeModel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Told:
    """Result of one call: rewards of the samples, in their order, and the call itself."""

    rewards: list[float]
    verdict: dict[str, Any]
    call: JudgeCall


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Mean reward of several judges, each asked several times; from 0 to 1.

    Parts are each judge's mean ("NAME"), its latency ("NAME/seconds"), with repeats the distance of
    its extremes ("NAME/spread"), and further numbers of a verdict ("NAME/KEY"). Texts are prompt,
    answer and further texts of the first repeat.

    Attributes:
        judges: by name.
        prompt: Jinja template with the names in `templates.py`; of siblings, `samples` have a
            `response` each and are in the order in which the verdict numbers them.
        system: text of a system message; None for none.
        together: None: each response alone; "scores" or "ranking": all siblings of a prompt in one
            call, which are scored, or ranked from best to worst.
        lowest: score of the worst response.
        highest: score of the best one.
        verdict: JSON schema of the answer with `score`, `scores` or `ranking`; None: that and a
            reason before it.
        structured: send the schema as `response_format`; false for services without it.
        repeats: calls of each judge. Siblings begin with another one in each repeat, because judges
            favour places.
        sampling: further parameters of a request, such as temperature and max_tokens.
        patience: limits of a call and its repeats.
        folder: of the run; set by the scoring process.
    """

    reads_lists: ClassVar[bool] = True  # the prompt shows all ground truths

    judges: Mapping[str, JudgeModel]
    prompt: str
    system: str | None = None
    together: str | None = None
    lowest: float = 0.0
    highest: float = 10.0
    verdict: Mapping[str, Any] | None = None
    structured: bool = True
    repeats: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    patience: Patience = field(default_factory=lambda: Patience(request_s=60.0, pause_s=1.0))
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("judges", "sampling"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        if not self.judges:
            raise ValueError("judges must name at least one judge, got none")
        if self.together not in (None, SCORES, RANKING):
            raise ValueError(f"together must be null, scores or ranking, got {self.together!r}")
        if not (self.lowest < self.highest and self.repeats >= 1):
            raise ValueError(
                "lowest must be below highest, and repeats at least 1, got "
                f"{self.lowest}, {self.highest}, {self.repeats}"
            )
        if {"model", "messages", "response_format"} & set(self.sampling):
            raise ValueError(f"sampling may not hold model, messages or format: {self.sampling}")
        check_template(self.prompt, ALONE if self.together is None else TOGETHER)
        self._check_schema()

    @property
    def whole_group(self) -> bool:
        """True where all siblings of a prompt are judged in one call."""
        return self.together is not None

    @property
    def check(self) -> Callable[[], None] | None:
        """The check in the place of a trial, while the run's own engines do not run yet."""
        waits = any(judge.waits for judge in self.judges.values())
        return functools.partial(template_of, self.prompt) if waits else None

    def on_engines(self, engines: JudgeEngines) -> Judge:
        """Return this judge with the run's own engines filled in."""
        return replace(self, judges={name: one.on(engines) for name, one in self.judges.items()})

    def keep_in(self, folder: str) -> None:
        """Keep calls in a file in the run's folder, and read repeated ones from it."""
        object.__setattr__(self, "folder", folder)

    def prepare(self) -> None:
        """Import what a call needs, open the file of calls, and check that the tokens are there."""
        connections()
        template_of(self.prompt)
        self._calls()
        for name, judge in self.judges.items():
            if judge.waits:
                raise ValueError(f"judge {name} has no url, and no engine of the run serves it")
            headers_of(judge.token_variable)

    def __call__(self, scored: RewardSample | Sequence[RewardSample]) -> Any:
        """Judge one sample, or all siblings; a mapping each.

        Raises:
            RuntimeError: a judge gave no answer; names the judge.
            ValueError: an answer without a verdict.
        """
        samples = [scored] if isinstance(scored, RewardSample) else list(scored)
        asked = [(name, repeat) for name in self.judges for repeat in range(self.repeats)]
        if len(asked) == 1:
            told = [self._ask(asked[0], samples)]
        else:
            with ThreadPoolExecutor(min(MAX_OPEN, len(asked))) as threads:
                told = list(threads.map(lambda each: self._ask(each, samples), asked))
        by_name = {
            name: [one for (judge, _), one in zip(asked, told, strict=True) if judge == name]
            for name in self.judges
        }
        results = [self._result(by_name, number) for number in range(len(samples))]
        return results[0] if isinstance(scored, RewardSample) else results

    def _result(self, told: Mapping[str, list[_Told]], number: int) -> dict[str, float | str]:
        """Return reward, parts and texts of sample `number`."""
        values: dict[str, float | str] = {}
        total = 0.0
        for name, calls in told.items():
            rewards = [call.rewards[number] for call in calls]
            mean = sum(rewards) / len(rewards)
            total += self.judges[name].weight * mean
            values[name] = mean
            values[f"{name}/seconds"] = sum(call.call.seconds for call in calls) / len(calls)
            if len(calls) > 1:
                values[f"{name}/spread"] = max(rewards) - min(rewards)
            first = calls[0]
            values[f"{name}/prompt"] = json.loads(first.call.prompt)["messages"][-1]["content"]
            values[f"{name}/answer"] = first.call.answer
            more = {k: v for k, v in first.verdict.items() if k not in (SCORE, SCORES, RANKING)}
            values.update({f"{name}/{key}": value for key, value in more.items()})
        return {"reward": total / sum(judge.weight for judge in self.judges.values()), **values}

    def _ask(self, asked: tuple[str, int], samples: Sequence[RewardSample]) -> _Told:
        """Ask a judge, given with the repeat's number, or read the answer of an equal call."""
        name, repeat = asked
        count = len(samples)
        order = [(place + repeat) % count for place in range(count)]
        schema = self._schema(count)
        body = self._body(self.judges[name], [samples[place] for place in order], schema)
        calls, key = self._calls(), key_of(body, repeat)
        call = calls.find(key) if calls else None
        if call is not None:
            return self._read(call, schema, order)
        call = self._call(name, body)
        try:
            return self._read(call, schema, order)
        except ValueError as error:
            call = replace(call, error=str(error))
            raise RuntimeError(f"judge {name}: {error}") from error
        finally:
            if calls:
                calls.keep(key, call)

    def _call(self, name: str, body: dict[str, Any]) -> JudgeCall:
        judge = self.judges[name]
        _pace(judge).wait()
        sent, headers = json.dumps(body), headers_of(judge.token_variable)
        began = time.perf_counter()
        first, *others = judge.addresses(sent)
        at_once = replace(self.patience, max_repeats=0)  # where one engine is gone, another is not
        asked = [(each, at_once) for each in (first, *others)] if others else []
        for address, patience in (*asked, (first, self.patience)):
            answer, error = "", ""
            try:
                content = post(
                    f"{address.rstrip('/')}/chat/completions",
                    sent.encode(),
                    headers=headers,
                    patience=patience,
                )
                answer = json.loads(content)["choices"][0]["message"]["content"] or ""
                break
            except RuntimeError as fault:
                error = str(fault)
            except (ValueError, KeyError, TypeError, IndexError):
                error = f"{address} gave no chat completion: {content[:200]!r}"
        return JudgeCall(
            judge=name,
            model=judge.model or "",
            prompt=sent,
            answer=answer,
            error=error,
            seconds=time.perf_counter() - began,
        )

    def _read(self, call: JudgeCall, schema: Any, order: Sequence[int]) -> _Told:
        if call.error:
            raise ValueError(call.error)
        verdict = read_verdict(call.answer, schema)
        rewards = rewards_of(
            verdict, self.together, order=order, lowest=self.lowest, highest=self.highest
        )
        return _Told(rewards=rewards, verdict=verdict, call=call)

    def _body(
        self, judge: JudgeModel, samples: Sequence[RewardSample], schema: Any
    ) -> dict[str, Any]:
        """Return the request for a verdict on samples in the order of the prompt."""
        first = samples[0]
        text = template_of(self.prompt).render(
            **{**asdict(first), "samples": samples, "lowest": self.lowest, "highest": self.highest}
        )
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        form = {"name": "verdict", "strict": True, "schema": schema}
        return {
            "model": judge.model,
            "messages": [*system, {"role": "user", "content": text}],
            **self.sampling,
            **(
                {"response_format": {"type": "json_schema", "json_schema": form}}
                if self.structured
                else {}
            ),
        }

    def _schema(self, count: int) -> Any:
        if self.verdict is not None:
            return self.verdict
        return verdict_schema(self.together, count=count, lowest=self.lowest, highest=self.highest)

    def _check_schema(self) -> None:
        """Raise ValueError for a schema that is none, or that has no place for the judged value."""
        import jsonschema

        schema, needed = self._schema(2), self.together or SCORE
        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"verdict is no JSON schema: {error.message}") from error
        if needed not in schema.get("properties", {}) or needed not in schema.get("required", ()):
            raise ValueError(f"verdict must have the required property {needed!r}, got {schema}")

    def _calls(self) -> CallFile | None:
        return None if self.folder is None else _call_file(self.folder)


@functools.cache
def _pace(judge: JudgeModel) -> Pace:
    """Return the pace of a judge in this process, the same one for equal judges."""
    return Pace(60.0 / judge.calls_per_minute if judge.calls_per_minute else 0.0)


@functools.cache
def _call_file(folder: str) -> CallFile:
    return CallFile(folder)
