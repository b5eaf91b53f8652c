"""Train with a reward of your own, in one file and one command.

    python tests/tutorials/own_reward.py FOLDER

A reward is a function of the prompt, the response, the ground truth and every other column of the
data. It runs in a process of its own: one that raises, hangs or ends its process costs one sample,
which is counted as failed and never becomes a reward of zero.
"""

import subprocess
import sys
from pathlib import Path

REWARD = '''
def reward(prompt, response, ground_truth, **columns):
    """Give half for the right first digit and half for the right length."""
    first = response[:1] == ground_truth[:1]
    length = len(response) == len(ground_truth)
    return {"reward": 0.5 * first + 0.5 * length, "first": first, "length": length}
'''

folder = Path(sys.argv[1]).absolute()
folder.mkdir(parents=True, exist_ok=True)
(folder / "my_reward.py").write_text(REWARD)

command = [
    *(sys.executable, "-m", "orchestrator.cli", "train", "experiment=tiny"),
    *("reward=function", f"reward.scorer.path={folder / 'my_reward.py'}:reward"),
    *("trainer.total_steps=2", "trainer.prompts_per_step=8", "data.eval_limit=8"),
    *(f"output_dir={folder}", "run_name=own_reward"),
]
subprocess.run(command, check=True)
