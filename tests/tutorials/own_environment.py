"""Train with an environment of your own, in one file and one command.

    python tests/tutorials/own_environment.py FOLDER

The policy copies a string digit by digit and is told after each turn if the digit was right. What
the policy samples trains; what the environment says does not.
"""

import subprocess
import sys
from pathlib import Path

PLAY = '''
from workers.rollout.environments.contract import Outcome

async def copy(task, session):
    """Draw a digit a turn and say "+" or "-" to it; every right digit earns its share."""
    earned = []
    for wanted in task.ground_truth:
        if not session.may_draw:
            break
        turn = await session.draw(max_tokens=1)
        earned.append(float(turn.text == wanted) / len(task.ground_truth))
        await session.observe([{"role": "user", "content": "+" if earned[-1] else "-"}])
    return Outcome(reward=sum(earned), turn_rewards=earned)
'''

folder = Path(sys.argv[1]).absolute()
folder.mkdir(parents=True, exist_ok=True)
(folder / "my_play.py").write_text(PLAY)

command = [
    *(sys.executable, "-m", "orchestrator.cli", "train", "experiment=tiny"),
    *("environment=function", f"environment.player.path={folder / 'my_play.py'}:copy"),
    *("algorithm=reinforce_pp", "rollout.sampling.max_new_tokens=12", "data.eval_limit=8"),
    *("trainer.total_steps=2", "trainer.prompts_per_step=8"),
    *(f"output_dir={folder}", "run_name=own_environment"),
]
subprocess.run(command, check=True)
