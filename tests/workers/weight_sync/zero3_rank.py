"""One of two ZeRO-3 ranks: trains a step, then holds slices against gathered parameters.

Started by `test_source.py` with a model folder as its argument.
"""

import sys

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from workers.engines.zero.weights import ZeroSource, expected_names
from workers.weight_sync.endpoint import Route
from workers.weight_sync.fingerprint import fingerprint
from workers.weight_sync.shm import ShmEndpoint


class Recorder:
    """A client that keeps what it is told."""

    def __init__(self) -> None:
        self.calls = []

    def init_weight_transfer_engine(self, init_info) -> None:
        self.calls.append(("init", init_info))

    def start_weight_update(self) -> None:
        self.calls.append(("start",))

    def update_weights(self, update_info) -> None:
        self.calls.append(("update", update_info["slot"]))

    def finish_weight_update(self, weight_version=None) -> None:
        self.calls.append(("finish", weight_version))


def trained_engine(folder):
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    deepspeed.init_distributed(dist_backend="gloo")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 200},
        "gradient_clipping": 1.0,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    tokens = torch.arange(8)[None] + 4 * dist.get_rank()  # [1, 8]
    engine.backward(engine(input_ids=tokens, labels=tokens, use_cache=False).loss)
    engine.step()
    return engine


def main() -> None:
    engine = trained_engine(sys.argv[1])
    rank, module = dist.get_rank(), engine.module
    for dtype in (None, torch.bfloat16):
        source = ZeroSource(module, rank=rank, world_size=2, dtype=dtype)
        client = Recorder() if rank == 0 else None
        endpoint = ShmEndpoint(source=source, client=client, route=Route(run_id="zero3"))
        endpoint.connect()
        gathered = {name: tensor.clone() for name, tensor in source}
        assert list(gathered) == expected_names(module)
        for version in (1, 2, 3):
            report = endpoint.publish(version)
            slot = endpoint._slots[(version - 1) % 2].data
            for meta, (name, staged) in zip(
                source.metadata(), endpoint._layout.views(slot), strict=True
            ):
                assert meta.shape == tuple(gathered[name].shape)
                assert torch.equal(staged, gathered[name]), name
                assert report.fingerprints[name] == fingerprint(gathered[name].view(-1)), name
        assert len(report.fingerprints) == len(gathered)
        if client is not None:
            kinds = [call[0] for call in client.calls]
            assert kinds == ["init"] + ["start", "update", "finish"] * 3
            assert [call[1] for call in client.calls if call[0] == "update"] == [0, 1, 0]
        endpoint.shutdown()
    held = [p.ds_tensor.numel() * 2 != p.ds_numel for p in module.parameters()]
    print(f"slices equal; {sum(held)} of {len(held)} parameters padded")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
