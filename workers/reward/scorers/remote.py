"""Score with a service: all siblings of a prompt in one HTTP request.

Runs in a scoring process, one request at a time in each, so `reward.num_processes` and
`reward.num_workers` bound the requests at once, and `reward.timeout_s` is the deadline of a request
with all its repeats. What a service can't answer is a failed sample.

    POST {"samples": [{"prompt", "response", "ground_truth", "columns"}, ...]}
    200  {"scores": [0.5, null, {"reward": 1.0, "correct": 1, "why": "..."}, ...]}

A score is read like the value of a function (`base.py`): null abstains. A server to copy is
`tests/tutorials/reward_server.py`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from workers.reward.base import RewardSample

REPEATED = (408, 429, 500, 502, 503, 504)  # the service may answer the next time


@dataclass(frozen=True, kw_only=True, slots=True)
class Http:
    """Scorer that posts the siblings of a prompt to a URL.

    Attributes:
        url: of the service, http or https.
        token_variable: an environment variable with a bearer token; None to send none. The token is
            not in the configuration, which is written into the run's folder.
        request_s: limit of one attempt.
        max_repeats: after 408, 429, 5xx or a broken connection, with growing pauses of a random
            part, or as long as the service's Retry-After says.
        pause_s: before the first repeat; doubled for each further one.
    """

    whole_group: ClassVar[bool] = True

    url: str
    token_variable: str | None = None
    request_s: float = 30.0
    max_repeats: int = 4
    pause_s: float = 0.5

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http://host/path or https://..., got {self.url!r}")
        if not (self.request_s > 0 and self.max_repeats >= 0 and self.pause_s >= 0):
            raise ValueError(
                "request_s must be positive, max_repeats and pause_s not negative, got "
                f"{self.request_s}, {self.max_repeats}, {self.pause_s}"
            )

    def prepare(self) -> None:
        """Import the HTTP client, and check that the token is there."""
        _client()
        self._headers()

    def __call__(self, samples: Sequence[RewardSample]) -> list[Any]:
        """Ask for the scores of samples; return them unread, in order.

        Raises:
            RuntimeError: the service gave no scores; the message holds its status or the error.
        """
        import urllib3

        repeats = urllib3.Retry(
            total=self.max_repeats,
            status_forcelist=REPEATED,
            allowed_methods=None,  # scoring twice changes nothing
            backoff_factor=self.pause_s,
            backoff_jitter=self.pause_s,
            redirect=0,
            raise_on_status=False,
        )
        body = json.dumps({"samples": [asdict(sample) for sample in samples]}, default=str)
        try:
            answer = _client().request(
                "POST",
                self.url,
                body=body.encode(),
                headers=self._headers(),
                timeout=urllib3.Timeout(total=self.request_s),
                retries=repeats,
            )
        except urllib3.exceptions.HTTPError as error:
            raise RuntimeError(f"no answer from {self.url}: {type(error).__name__}") from error
        if answer.status != 200:
            raise RuntimeError(f"{self.url} answered {answer.status}: {answer.data[:200]!r}")
        try:
            scores = json.loads(answer.data)["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f'{self.url} must answer {{"scores": [...]}}, got {answer.data[:200]!r}'
            ) from error
        return list(scores)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.token_variable is not None:
            token = os.environ.get(self.token_variable)
            if not token:
                raise ValueError(
                    f"reward.scorer.token_variable={self.token_variable}: that environment "
                    "variable is not set; with ballast submit, send it by --secret"
                )
            headers["Authorization"] = f"Bearer {token}"
        return headers


@functools.cache
def _client() -> Any:
    """Return the connections of this process, which are kept open between requests."""
    import urllib3

    return urllib3.PoolManager(maxsize=1)
