"""Publication over TCP with gloo, for engines on other nodes without CUDA.

Rank 0 gathers the weights into one host buffer and broadcasts it piece by piece, to one engine of
every other node, while the rest is being gathered. The engines of a node share one copy, those of
the trainer's own node the buffer itself (`broadcast.py`). Runs in the learner's ranks. The engines'
end is `receivers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

from torch import Tensor

from workers.addresses import own_address
from workers.engines.zero.weights import ZeroSource
from workers.weight_sync.broadcast import TRAINER, Rendezvous, holders, pieces
from workers.weight_sync.endpoint import (
    PublishReport,
    Route,
    Stopwatch,
    TrainerEndpoint,
    WeightSyncClient,
    copy_bandwidth,
    run_in_thread,
)
from workers.weight_sync.fingerprint import Fingerprint, fingerprint
from workers.weight_sync.layout import Layout
from workers.weight_sync.shm import SharedBuffer


class GlooEndpoint(TrainerEndpoint):
    """Trainer's end of the gloo transport.

    Reads the route's `run_id`, `node`, `engine_nodes`, `host` and `timeout_s`.
    """

    name = "gloo"

    def __init__(
        self,
        *,
        source: ZeroSource,
        client: WeightSyncClient | None,
        route: Route,
    ) -> None:
        super().__init__(source=source, client=client, route=route)
        if not route.engine_nodes:
            raise ValueError("gloo needs at least one engine, engine_nodes is empty")
        self._holders = holders(route.node, route.engine_nodes)
        self._host = route.host or own_address()
        self._timeout_s = route.timeout_s
        self._layout = Layout.of(source.metadata())
        self._rendezvous: Rendezvous | None = None
        self._shared: SharedBuffer | None = None
        self._round = 0
        self._copy_bytes_per_s: float | None = None

    def connect(self) -> None:
        """Connect to all engines; after an engine restarted, call it again for all of them."""
        if self.rank != 0:
            return
        self._rendezvous = Rendezvous(
            host=self._host,
            port=0,
            holders=self._holders,
            place=TRAINER,
            timeout_s=self._timeout_s,
        )
        if self._shared is None:
            label = f"ballast-{self.route.run_id}"
            self._shared = SharedBuffer.create(label, self._layout.num_bytes)
            self._copy_bytes_per_s = copy_bandwidth(self._shared.data)
        self._rendezvous.set_path(self._shared.path)
        init_info = {
            "host": self._host,
            "port": self._rendezvous.port,
            "holders": self._holders,
            "place": 0,  # every engine puts its own here (VLLMWeights)
            "timeout_s": self._timeout_s,
            "layout": self._layout.to_dict(),
        }
        answer = run_in_thread(self._require_client().init_weight_transfer_engine, init_info)
        self._rendezvous.join()
        answer.result()

    def publish(self, version: int) -> PublishReport:
        """See `TrainerEndpoint.publish`; fingerprints on rank 0 only.

        Raises:
            RuntimeError: an engine was lost while it received; connect again without it.
        """
        watch = Stopwatch()
        fingerprints: dict[str, Fingerprint] = {}
        if self.rank == 0:
            if self._rendezvous is None or self._shared is None:
                raise RuntimeError("publish before connect: call connect() on every rank first")
            client = self._require_client()
            with watch.phase("start"):
                self._begin(client)
            with watch.phase("update"):
                self._round += 1
                names = [meta.name for meta in self._layout.metas]
                answer = run_in_thread(
                    client.update_weights, {"names": names, "number": self._round}
                )
                try:
                    fingerprints = self._send(self._rendezvous, self._shared.data, answer)
                    answer.result()
                except Exception:
                    self._rendezvous.leave()
                    self._rendezvous.give_up(self._round)
                    raise
            with watch.phase("finish"):
                client.finish_weight_update(str(version))
        else:
            with watch.phase("gather"):
                for _ in self.source:
                    pass
        return PublishReport(
            version=version,
            transport=self.name,
            names=tuple(fingerprints),
            num_bytes=self._layout.num_bytes,
            seconds=watch.total(),
            fingerprints=fingerprints,
            copy_bytes_per_s=self._copy_bytes_per_s,
        )

    def shutdown(self) -> None:
        """Leave the group."""
        if self._shared is not None:
            self._shared.close()
        self._rendezvous, self._shared = None, None

    def _begin(self, client: WeightSyncClient) -> None:
        try:
            client.start_weight_update()
        except Exception:
            for _ in self.source:  # other ranks gather together with this one
                pass
            raise

    def _send(
        self, rendezvous: Rendezvous, buffer: Tensor, answer: Future[None]
    ) -> dict[str, Fingerprint]:
        """Broadcast each piece of the buffer as soon as it is filled.

        The source is read to its end in any case: other ranks gather together with this one.
        """
        remaining = pieces(self._layout.num_bytes)
        fingerprints: dict[str, Fingerprint] = {}
        failure: Exception | None = None
        for filled in self._fill(buffer, fingerprints):
            try:
                while failure is None and remaining and remaining[0][1] <= filled:
                    begin, end = remaining.pop(0)
                    if answer.done():
                        answer.result()  # the engines refused: raise instead of waiting for them
                    rendezvous.broadcast(buffer[begin:end])
            except Exception as error:
                failure = error
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # or its traceback would keep this frame, and the buffer with it
        rendezvous.mark_complete(self._round)
        return fingerprints

    def _fill(self, buffer: Tensor, fingerprints: dict[str, Fingerprint]) -> Iterator[int]:
        """Copy tensor by tensor; yield how many bytes are final."""
        flat = self._layout.flat_views(buffer)
        ends = dict(zip(flat, (*self._layout.offsets[1:], self._layout.num_bytes), strict=True))
        for name, tensor in self.source:
            flat[name].copy_(tensor.view(-1))
            fingerprints[name] = fingerprint(flat[name])
            yield ends[name]
        yield self._layout.num_bytes
