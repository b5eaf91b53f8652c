"""Write a loss, give it a name, check it, and see the plan of a run that uses it.

    python tests/tutorials/own_algorithm.py FOLDER

A loss is a frozen dataclass that declares the columns it reads and returns one value per token.
The dotted path in the YAML is all the registration there is.
"""

import os
import subprocess
import sys
from pathlib import Path

LOSS = '''
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.ratios import policy_ratio


@dataclass(frozen=True, kw_only=True)
class SoftClip(PolicyLoss):
    """Saturate the ratio smoothly: -A tanh(k (r - 1)) / k, with slope A at r = 1."""

    sharpness: float = 4.0

    columns = frozenset({"old_logprobs"})

    def __call__(self, inputs: LossInputs) -> Tensor:
        moved = policy_ratio(inputs) - 1.0  # [N]
        return -inputs.advantages * torch.tanh(self.sharpness * moved) / self.sharpness
'''
NAME = """
defaults:
  - _self_
  - advantage: group_relative
  - gate: none
  - correction: none
  - aggregation: token_mean
  - reference: frozen
  - controller: none

_target_: algorithms.algorithm.Algorithm
name: soft_clip
policy_loss: {_target_: my_loss.SoftClip, sharpness: 4.0}
"""

folder = Path(sys.argv[1]).absolute()
(folder / "my_conf" / "algorithm").mkdir(parents=True, exist_ok=True)
(folder / "my_loss.py").write_text(LOSS)
(folder / "my_conf" / "algorithm" / "soft_clip.yaml").write_text(NAME)

path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
for command in ("check-algorithm", "train --dry-run"):
    words = [*command.split(), "--config-dir", str(folder / "my_conf")]
    subprocess.run(
        [
            *(sys.executable, "-m", "orchestrator.cli", *words),
            *("experiment=tiny", "algorithm=soft_clip"),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
