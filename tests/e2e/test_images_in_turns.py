"""Images that an environment shows, through the whole stack, and a replay of their record."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.e2e.command import finish_ballast, step_metrics

TIMEOUT_S = 1500
STEPS = 4
#: The first turn is played blind; then the picture is shown whose colour the second turn names.
ENVIRONMENT = """
import numpy as np

from workers.data.images.decoding import png_of
from workers.rollout.environments.contract import Outcome
from workers.tasks.colours import COLOURS


async def look(task, session):
    await session.draw(max_tokens=1)
    noise = np.random.default_rng(int(task.uid.rpartition(":")[2])).normal(0.0, 25.0, (56, 56, 3))
    pixels = np.clip(np.array(COLOURS[task.ground_truth]) + noise, 0, 255).astype(np.uint8)
    parts = [{"type": "image", "image": png_of(pixels)}, {"type": "text", "text": "colour:"}]
    await session.observe([{"role": "user", "content": parts}])
    turn = await session.draw(max_tokens=1)
    right = float(turn.text == task.ground_truth)
    return Outcome(reward=right, turn_rewards=(0.0, right))
"""


def train(folder, name, *overrides):
    """Train a tiny vision-language model in the environment; return the run's folder."""
    finish_ballast(
        *("train", "experiment=tiny_vision", "environment=function"),
        *(f"environment.player.path={folder}/looks.py:look", "environment.max_turns=2"),
        *("environment.shows_images=true", "data.build=null", "data.image_column=null"),
        *(f"data.train_path={folder}/rows.parquet", f"data.eval_path={folder}/rows.parquet"),
        *("trainer.prompts_per_step=8", "rollout.samples_per_prompt=8"),
        *(f"trainer.total_steps={STEPS}", "trainer.eval_every=2", "trainer.checkpoint_every=4"),
        *("rollout.sampling.max_new_tokens=20", "rollout.eval_sampling.max_new_tokens=20"),
        *(f"run_name={name}", f"output_dir={folder}", *overrides),
        cwd=folder,
        timeout_s=TIMEOUT_S,
    )
    return folder / name


@pytest.mark.slow
def test_what_an_environment_shows_is_trained_evaluated_reported_and_replayed(tmp_path):
    (tmp_path / "looks.py").write_text(ENVIRONMENT)
    rows = {"prompt": ["look:"] * 32, "ground_truth": [*"rgby"] * 8}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    run = train(tmp_path, "seeing")
    steps = step_metrics(run)
    assert len(steps) == STEPS
    worst = max(line["mismatch/abs_max"] for line in steps)
    print(f"largest difference of a log-prob over both turns: {worst:.2e}")
    assert worst < 1e-4
    assert '"eval/' in (run / "metrics.jsonl").read_text()
    record = pq.read_table(run / "rollouts" / "step_000001.parquet")
    assert set(record["outcome"].to_pylist()) == {"scored"}
    assert set(record["num_turns"].to_pylist()) == {2}
    for shown, turns in zip(record["images"].to_pylist(), record["turns"].to_pylist(), strict=True):
        assert len(shown) == 1
        assert turns[0]["end"] < shown[0]["offset"] < turns[1]["start"]
    files = {file for (file,) in record["image_files"].to_pylist()}
    assert len(files) == 8  # one of each prompt, for all siblings
    finish_ballast("report", str(run), cwd=tmp_path)
    assert "behind the prompt" in (run / "report.html").read_text()
    replay = ("rollout=replay", f"rollout.replay.folder={run}", "trainer.eval_every=0")
    again = train(tmp_path, "again", *replay)
    mine, theirs = (load_file(one / "final" / "model.safetensors") for one in (run, again))
    for name, tensor in mine.items():
        assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes(), name
