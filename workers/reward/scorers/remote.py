"""Score with a service: all siblings of a prompt in one HTTP request.

Runs in a scoring process, one request at a time in each, so `reward.num_processes` and
`reward.num_workers` bound the requests at once, and `reward.timeout_s` is the deadline of a request
with all its repeats. What a service can't answer is a failed sample.

    POST {"samples": [{"prompt", "response", "ground_truth", "columns", "messages"}, ...]}
    200  {"scores": [0.5, null, {"reward": 1.0, "correct": 1, "why": "..."}, ...]}

With `send_images` the request holds each file of the prompt's images once, and every sample the
numbers of its own, from 0 and in order:

    POST {"samples": [{..., "images": [0]}, ...], "images": ["data:image/png;base64,iVBOR..."]}

A score is read like the value of a function (`base.py`): null abstains. A server to copy is
`tests/tutorials/reward_server.py`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from PIL import Image

from workers.reward.base import RewardSample
from workers.reward.service import Patience, check_url, connections, headers_of, post


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
        send_images: send the files of the prompt's images, too.
    """

    whole_group: ClassVar[bool] = True

    url: str
    token_variable: str | None = None
    request_s: float = 30.0
    max_repeats: int = 4
    pause_s: float = 0.5
    send_images: bool = False

    def __post_init__(self) -> None:
        check_url(self.url)
        self._patience()

    @property
    def reads_images(self) -> bool:
        """See `base.Scorer`."""
        return self.send_images

    def prepare(self) -> None:
        """Import the HTTP client, and check that the token is there."""
        connections()
        headers_of(self.token_variable)

    def __call__(self, samples: Sequence[RewardSample]) -> list[Any]:
        """Ask for the scores of samples; return them unread, in order.

        Raises:
            RuntimeError: the service gave no scores; the message holds its status or the error.
        """
        body: dict[str, Any] = {"samples": [asdict(sample) for sample in samples]}
        numbers: dict[bytes, int] = {}
        for sample in body["samples"]:
            files = sample.pop("images") or ()
            if self.send_images:
                sample["images"] = [numbers.setdefault(file, len(numbers)) for file in files]
        if self.send_images:
            body["images"] = [data_url(file) for file in numbers]
        answer = post(
            self.url,
            json.dumps(body, default=str).encode(),
            headers=headers_of(self.token_variable),
            patience=self._patience(),
        )
        try:
            scores = json.loads(answer)["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f'{self.url} must answer {{"scores": [...]}}, got {answer[:200]!r}'
            ) from error
        return list(scores)

    def _patience(self) -> Patience:
        return Patience(
            request_s=self.request_s, max_repeats=self.max_repeats, pause_s=self.pause_s
        )


def data_url(file: bytes) -> str:
    """Return the file of an image as a URL that holds it (RFC 2397)."""
    try:
        with Image.open(io.BytesIO(file)) as image:
            kind = image.get_format_mimetype()
    except (OSError, ValueError):  # the service may know the format
        kind = None
    return f"data:{kind or 'application/octet-stream'};base64,{base64.b64encode(file).decode()}"
