"""Checkpoints of the ZeRO engine: to the bit in one layout, to rounding in another, or refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import checkpoint_rank
from checkpoint_rank import engine_of, take_step
from rank_processes import run_ranks

from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings


def build(folder: Path, **changes: int) -> Path:
    """A tied Llama of 2 layers; its odd sizes leave padding in every partition."""
    sizes = {"vocab_size": 21, "hidden_size": 28, "intermediate_size": 45} | changes
    config = LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        **sizes,
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def saved(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, float]:
    """Two steps on one rank under every stage, saved; and the next two losses of stage 0."""
    folder = tmp_path_factory.mktemp("checkpoints")
    losses = []
    for stage in (0, 1, 2, 3):
        engine = engine_of(str(model), stage)
        take_step(engine)
        take_step(engine)
        engine.save(folder / str(stage))
        if stage == 0:
            losses = [take_step(engine), take_step(engine)]
        engine.close()
    return folder, *losses


def test_another_stage_and_number_of_ranks_go_on_with_the_same_loss(
    model: Path, saved: tuple[Path, float, float], tmp_path: Path
) -> None:
    """One rank -> two ranks of another stage -> one rank of yet another."""
    folder, third, fourth = saved
    saved_losses = run_ranks(
        checkpoint_rank.__file__,
        tmp_path,
        2,
        model=str(model),
        folder=str(folder),
        stages=[0, 1, 2, 3],
        load_stage={0: 3, 1: 0, 2: 1, 3: 2},
    )
    losses = json.loads(saved_losses.read_text())
    assert sorted(losses) == ["0", "1", "2", "3"]
    for stage, loss in losses.items():
        assert loss == pytest.approx(third, abs=1e-5), f"two ranks, stage {stage}"
    for stage, source in ((0, 1), (1, 2), (2, 3), (3, 0)):
        engine = engine_of(str(model), stage)
        engine.load(folder / f"two-{source}")
        assert engine.progress.steps_taken == 3
        assert take_step(engine) == pytest.approx(fourth, abs=1e-5), f"two-{source} -> {stage}"
        engine.close()


def test_the_files_hold_whole_parameters(saved: tuple[Path, float, float], model: Path) -> None:
    """What a rank's file is said to hold: flat float32 state under the model's own names."""
    folder = saved[0]
    shapes = {
        name: p.shape for name, p in AutoModelForCausalLM.from_pretrained(model).named_parameters()
    }
    for stage in ("0", "1", "2", "3"):
        tensors = load_file(folder / stage / "rank_00000.safetensors")
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            for name, shape in shapes.items():
                assert tensors[f"{kind}.{name}"].shape == (shape.numel(),), (stage, kind, name)
        assert len(tensors) == 3 * len(shapes)
        for name in shapes:
            assert tensors[f"exp_avg_sq.{name}"].min() >= 0
            assert tensors[f"exp_avg.{name}"].abs().max() > 0


def test_a_snapshot_is_of_its_moment(model: Path, tmp_path: Path) -> None:
    """Steps taken while the files are written do not reach them."""
    for stage in (0, 2, 3):
        engine = engine_of(str(model), stage)
        take_step(engine)
        engine.save(tmp_path / f"at-once-{stage}")
        snapshot = engine.snapshot()
        take_step(engine)
        records = snapshot.write(tmp_path / f"later-{stage}")
        engine.close()
        assert [record.path for record in records] == ["rank_00000.safetensors", "engine.json"]
        assert snapshot.num_bytes < records[0].num_bytes
        for name in ("rank_00000.safetensors", "engine.json"):
            one = (tmp_path / f"at-once-{stage}" / name).read_bytes()
            assert one == (tmp_path / f"later-{stage}" / name).read_bytes()


def test_what_is_not_a_checkpoint_of_this_engine_is_refused(
    saved: tuple[Path, float, float], model: Path, tmp_path: Path
) -> None:
    folder = saved[0]
    engine = engine_of(str(model), 0)
    with pytest.raises(ValueError, match=r"not a checkpoint of this engine: engine\.json"):
        engine.load(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    data = (folder / "1" / "rank_00000.safetensors").read_bytes()
    (broken / "rank_00000.safetensors").write_bytes(data[:-100])
    (broken / "engine.json").write_text((folder / "1" / "engine.json").read_text())
    with pytest.raises(ValueError, match=r"rank_00000\.safetensors can't be read"):
        engine.load(broken)
    engine.close()
    other = engine_of(str(build(tmp_path / "other", intermediate_size=46)), 0)
    with pytest.raises(ValueError, match=r"checkpoint of another model: .*mlp.*_proj\.weight"):
        other.load(folder / "1")
    other.close()
    sgd = PolicyEngine(ZeroSettings(model=str(model), optimizer=OptimizerSettings(name="sgd")))
    with pytest.raises(ValueError, match=r"set learner\.optimizer\.name=adamw"):
        sgd.load(folder / "1")
    sgd.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_a_policy_that_only_scores_keeps_its_weights(
    saved: tuple[Path, float, float], model: Path, tmp_path: Path, stage: int
) -> None:
    """It reads a learner's checkpoint, and saves and reads its own."""
    folder = saved[0]
    settings = ZeroSettings(model=str(model), zero_stage=stage, optimizer=None)
    learner, reference, third = (
        engine_of(str(model), 1),
        PolicyEngine(settings),
        PolicyEngine(settings),
    )
    learner.load(folder / "2")
    before = reference.probe([[3, 4, 5, 6]])[0]
    reference.load(folder / "2")
    reference.save(tmp_path / "reference")
    third.load(tmp_path / "reference")
    want = learner.probe([[3, 4, 5, 6]])[0]
    assert abs(before - want).max() > 1e-4
    for engine in (reference, third):
        assert abs(engine.probe([[3, 4, 5, 6]])[0] - want).max() < 1e-6
    for engine in (third, reference, learner):  # the first one owns the process group
        engine.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_state_in_host_memory_goes_on_to_the_bit(model: Path, tmp_path: Path, stage: int) -> None:
    """Offloaded optimizer state (and, on stage 3, parameters) is saved and read like any other."""

    def engine() -> PolicyEngine:
        settings = ZeroSettings(
            model=str(model),
            zero_stage=stage,
            optimizer=checkpoint_rank.OPTIMIZER,
            offload_optimizer=True,
            offload_params=stage == 3,
        )
        return PolicyEngine(settings)

    whole = engine()
    take_step(whole)
    whole.save(tmp_path / "checkpoint")
    want = [take_step(whole), take_step(whole)]
    whole.close()
    resumed = engine()
    resumed.load(tmp_path / "checkpoint")
    got = [take_step(resumed), take_step(resumed)]
    resumed.close()
    assert got == want
