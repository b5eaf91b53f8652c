"""Build the trainer's end of a transport, in every rank of the learner.

Not the table of transports, which is `conf/tables/transports.py`. Must be given the name that
`VLLMSettings.weight_transfer_backend` has, which chooses the engines' end.
"""

from __future__ import annotations

from importlib import import_module

from conf.tables.transports import transport_named
from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.endpoint import Route, TrainerEndpoint, WeightSyncClient


def trainer_endpoint(
    name: str, *, source: ZeroSource, client: WeightSyncClient | None, route: Route
) -> TrainerEndpoint:
    """Build the endpoint of this trainer rank; `connect()` it on all ranks before publishing.

    Args:
        name: of a row of the table of transports.
        source: this rank's weights; carries rank and world size.
        client: calls the engines, on rank 0; None on the others.
        route: where the engines are.

    Raises:
        ValueError: an unknown name.
    """
    module, _, class_name = transport_named(name).endpoint.rpartition(".")
    endpoint: type[TrainerEndpoint] = getattr(import_module(module), class_name)
    return endpoint(source=source, client=client, route=route)
