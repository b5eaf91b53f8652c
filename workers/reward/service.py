"""Ask a service over HTTP, and ask again where that may help.

Runs in scoring processes, below the scorers that ask services. Knows nothing of scores: bytes go
out and come in. Connections stay open from request to request.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

REPEATED = (408, 429, 500, 502, 503, 504)  # the service may answer the next time
MAX_OPEN = 8  # connections to one host


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Limits of one request and of its repeats.

    Repeats follow 408, 429, 5xx or a broken connection, after growing pauses of a random part, or
    after as long as the service's Retry-After says.

    Attributes:
        request_s: limit of one attempt.
        max_repeats: further attempts.
        pause_s: before the first repeat; doubled for each further one.
    """

    request_s: float = 30.0
    max_repeats: int = 4
    pause_s: float = 0.5

    def __post_init__(self) -> None:
        if not (self.request_s > 0 and self.max_repeats >= 0 and self.pause_s >= 0):
            raise ValueError(
                "request_s must be positive, max_repeats and pause_s not negative, got "
                f"{self.request_s}, {self.max_repeats}, {self.pause_s}"
            )


def check_url(url: str) -> None:
    """Raise ValueError unless `url` is an address of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be http://host/path or https://..., got {url!r}")


def headers_of(token_variable: str | None) -> dict[str, str]:
    """Return the headers of a request, with the token of an environment variable if one is named.

    Raises:
        ValueError: the variable is not set.
    """
    headers = {"Content-Type": "application/json"}
    if token_variable is not None:
        token = os.environ.get(token_variable)
        if not token:
            raise ValueError(
                f"token_variable={token_variable}: that environment variable is not set; with "
                "ballast submit, send it by --secret"
            )
        headers["Authorization"] = f"Bearer {token}"
    return headers


def post(url: str, body: bytes, *, headers: dict[str, str], patience: Patience) -> bytes:
    """Post JSON and return the body of the answer.

    Raises:
        RuntimeError: no answer, or one of another status than 200, after all repeats.
    """
    import urllib3

    repeats = urllib3.Retry(
        total=patience.max_repeats,
        status_forcelist=REPEATED,
        allowed_methods=None,  # asking twice changes nothing
        backoff_factor=patience.pause_s,
        backoff_jitter=patience.pause_s,
        redirect=0,
        raise_on_status=False,
    )
    try:
        answer = connections().request(
            "POST",
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(total=patience.request_s),
            retries=repeats,
        )
    except urllib3.exceptions.HTTPError as error:
        raise RuntimeError(f"no answer from {url}: {type(error).__name__}") from error
    if answer.status != 200:
        raise RuntimeError(f"{url} answered {answer.status}: {answer.data[:200]!r}")
    return bytes(answer.data)


class Pace:
    """Pace of requests, for all threads of this process.

    Args:
        pause_s: least time between the starts of two requests.
    """

    def __init__(self, pause_s: float) -> None:
        self._pause_s, self._next, self._lock = pause_s, 0.0, threading.Lock()

    def wait(self) -> None:
        """Return when the next request may start."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._pause_s
        time.sleep(max(0.0, start - time.monotonic()))


@functools.cache
def connections() -> Any:
    """Return the connections of this process."""
    import urllib3

    return urllib3.PoolManager(maxsize=MAX_OPEN)
