"""Images through the whole stack: a random vision-language model learns to name colours."""

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.e2e.command import finish_ballast, step_metrics

TIMEOUT_S = 3000


def vision(folder, name, *overrides):
    """`ballast train experiment=tiny_vision` in `folder`; return the run's folder."""
    command = ("train", "experiment=tiny_vision", f"run_name={name}", f"output_dir={folder}")
    finish_ballast(*command, *overrides, cwd=folder, timeout_s=TIMEOUT_S)
    return folder / name


@pytest.mark.slow
def test_colours_are_learned_from_pixels(tmp_path):
    run = vision(tmp_path, "seeing")
    seen = step_metrics(run)
    rewards = [line["reward/mean"] for line in seen]
    assert len(rewards) == 150
    assert max(rewards[:5]) < 0.35
    assert sum(rewards[-10:]) / 10 > 0.9
    assert max(line["mismatch/abs_max"] for line in seen) < 1e-4
    assert max(line["publication/probe_gap_max"] for line in seen) < 1e-4
    file = run / "rollouts" / "step_000001.parquet"
    table = pq.read_table(file)
    assert len(table) == 256
    assert len({shown[0]["digest"] for shown in table["images"].to_pylist()}) == 16
    assert (
        file.stat().st_size
        < 1.2 * sum(len(one) for one in {files[0] for files in table["image_files"].to_pylist()})
        + 256 * 200
    )  # 200 bytes are a generous row of text


@pytest.mark.slow
def test_squares_are_counted(tmp_path):
    run = vision(
        tmp_path, "counting", "data=counting", "trainer.total_steps=300", "trainer.eval_every=0"
    )
    rewards = [line["reward/mean"] for line in step_metrics(run)]
    assert max(rewards[:5]) < 0.35
    assert sum(rewards[-10:]) / 10 > 0.9


@pytest.mark.slow
def test_pictures_without_a_colour_teach_nothing(tmp_path):
    run = vision(
        tmp_path,
        "blank",
        "data.build.blank=true",
        "trainer.total_steps=100",
        "trainer.eval_every=0",
    )
    rewards = [line["reward/mean"] for line in step_metrics(run)]
    assert sum(rewards[-10:]) / 10 < 0.35


@pytest.mark.slow
def test_a_record_with_images_trains_again_to_the_same_bits(tmp_path):
    short = ["trainer.total_steps=3", "trainer.eval_every=0", "trainer.checkpoint_every=3"]
    run = vision(tmp_path, "recorded", *short)
    again = vision(tmp_path, "again", *short, "rollout=replay", f"rollout.replay.folder={run}")
    mine, theirs = (load_file(one / "final" / "model.safetensors") for one in (run, again))
    assert mine.keys() == theirs.keys()
    assert any("visual" in name for name in mine)
    for name, tensor in mine.items():
        assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes(), name
