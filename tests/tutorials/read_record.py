"""Read what a run recorded: every sample, token by token.

    python tests/tutorials/read_record.py RUN

`rollouts/step_000001.parquet` holds one row per sample that trained in step 1. Per-token columns
are aligned to `tokens`, prompt and response.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

run = Path(sys.argv[1])
table = pq.read_table(run / "rollouts" / "step_000001.parquet")
print(f"{table.num_rows} samples, columns: {', '.join(table.column_names)}")

best = max(table.to_pylist(), key=lambda row: row["reward"])
print(f"best of step 1: {best['response_text']!r}, reward {best['reward']:g}, {best['outcome']}")
print("parts of its reward:", dict(best["reward_parts"]))

# How likely the sampler found each token of the response, and how likely the learner finds it.
trained = np.array(best["loss_mask"])
columns = zip(
    np.array(best["tokens"])[trained],
    np.array(best["rollout_logprobs"])[trained],
    np.array(best["logprobs"])[trained],
    np.array(best["advantages"])[trained],
    strict=True,
)
print("   token  rollout_logprob  logprob  advantage")
for token, sampled, learned, advantage in columns:
    print(f"{token:8d}  {sampled:15.6f}  {learned:7.4f}  {advantage:9.4f}")

gap = max(
    float(
        np.abs(np.array(row["rollout_logprobs"]) - np.array(row["logprobs"]))[
            row["loss_mask"]
        ].max()
    )
    for row in table.to_pylist()
)
print(f"largest gap between sampler and learner: {gap:.2e}")
