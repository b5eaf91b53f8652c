"""Kill a run in the middle, and go on with `resume=auto`.

    python tests/tutorials/resume_after_kill.py FOLDER

A checkpoint holds weights, optimizer, random states, the ledger of prompts and finished groups, so
the resumed run trains every prompt exactly once and, in synchronous float32 on CPU, computes the
very bits that it would have computed without the kill.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1]).absolute()
folder.mkdir(parents=True, exist_ok=True)
command = [
    *(sys.executable, "-m", "orchestrator.cli", "train", "experiment=tiny"),
    *("trainer.total_steps=4", "trainer.checkpoint_every=1", "trainer.prompts_per_step=8"),
    *("data.eval_limit=8", f"output_dir={folder}", "run_name=killed"),
]
run = folder / "killed"

first = subprocess.Popen(command, start_new_session=True)
deadline = time.monotonic() + 240
while not (run / "checkpoints" / "step_000002").exists() and time.monotonic() < deadline:
    time.sleep(0.2)
os.killpg(first.pid, signal.SIGKILL)  # no warning, no clean-up
first.wait()
print("killed; checkpoints:", sorted(path.name for path in (run / "checkpoints").iterdir()))

subprocess.run([*command, "resume=auto"], check=True)
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
steps = [line["step"] for line in lines if "reward/mean" in line]
print("steps in metrics.jsonl:", steps)
assert steps == [1, 2, 3, 4], steps
