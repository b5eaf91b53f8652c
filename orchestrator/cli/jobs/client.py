"""Connect to a cluster's job server, with one clear message for every possible failure.

Runs in the process of the command. Sends no job: `commands.py` does.
"""

from __future__ import annotations

import os

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


class ClusterError(ValueError):
    """Fault of a cluster that can't be used; the message names the remedy."""


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the job server at `address`, with Ray's token if authentication is on.

    Args:
        address: such as http://head:8265; None reads RAY_API_SERVER_ADDRESS, then this machine's.

    Raises:
        ClusterError: no server, no or a wrong token, or another version of Ray.
    """
    place = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if not place.startswith(("http://", "https://")):
        raise ClusterError(
            f"--address {place}: give the address of the dashboard, such as {DEFAULT_ADDRESS}"
        )
    try:
        client = JobSubmissionClient(place)
        version = str(client._server_ray_version)  # read by the constructor; no public name
    except AuthenticationError as error:
        raise ClusterError(
            f"{place} refuses the token ({_first_line(error)}); this side has RAY_AUTH_MODE="
            f"{os.environ.get('RAY_AUTH_MODE')}: set RAY_AUTH_TOKEN_PATH to a file with the "
            "cluster's token"
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise ClusterError(
            f"no Ray cluster answers at {place}: start one (ray start --head), or open the way to "
            "its dashboard (kubectl port-forward, ssh -L)"
        ) from error
    except RuntimeError as error:
        raise ClusterError(f"{place} is no job server of Ray: {_first_line(error)}") from error
    if version != ray.__version__:
        raise ClusterError(
            f"{place} runs Ray {version}, this side Ray {ray.__version__}: install the same "
            "requirement file on both"
        )
    return client


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
