"""GRPO as a loop of transformers and torch in one process: a limit, one of `peers.py`'s programs.

What it is: `generate`, one padded forward and backward pass per micro-batch, AdamW; the shortest
program that trains the work. What it is not: a trainer; it records nothing and checks nothing. A
job (`works.py`) in; seconds, tokens and rewards out.

    python tests/bench/programs/plain_loop.py --job job.json --out result.json

Legend: B sequences of a step, P the longest prompt, R the longest response, V vocabulary.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rewards import REWARDS
from torch import Tensor
from trl_grpo import stop_tokens

EPS = 1e-6  # beside a group's standard deviation


def advantages_of(rewards: Tensor, samples: int) -> Tensor:
    """Return (R - mean) / (std + eps) within each group; `rewards` and the result are [B].

    Example: rewards 1, 0, 1, 0 of one group have the mean 0.5 and the standard deviation 0.577, so
    the advantages are 0.866, -0.866, 0.866, -0.866.
    """
    groups = rewards.view(-1, samples)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + EPS)).flatten()


def response_mask(responses: Tensor, ends: Tensor) -> Tensor:
    """Return True up to the first token of `ends`, which trains too; `responses` is [B, R]."""
    is_end = torch.isin(responses, ends)
    return is_end.cumsum(1) - is_end.long() == 0


def loss_of(
    logits: Tensor, responses: Tensor, mask: Tensor, advantages: Tensor, *, entropy: float
) -> Tensor:
    """Return the sum over sequences of the clipped loss's mean over tokens, on policy.

    Args:
        logits: [B, R, V], of the tokens of `responses` [B, R].
        responses: sampled tokens.
        mask: [B, R], True for tokens that train.
        advantages: [B].
        entropy: coefficient of the entropy bonus.
    """
    log_p = logits.float().log_softmax(-1)  # [B, R, V]
    logprobs = log_p.gather(-1, responses[..., None])[..., 0]  # [B, R]
    # On policy the ratio is 1 and no clip acts; its gradient is that of the log-prob.
    per_token = -(logprobs - logprobs.detach()).exp() * advantages[:, None]
    if entropy:
        per_token = per_token + entropy * (log_p.exp() * log_p).sum(-1)
    return ((per_token * mask).sum(1) / mask.sum(1)).sum()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sampled sequences of one step.

    Attributes:
        whole: [B, P+R] prompts, padded on the left, and responses.
        seen: [B, P+R] True where a token is no padding.
        responses: [B, R].
        mask: [B, R] True for tokens that train.
    """

    whole: Tensor
    seen: Tensor
    responses: Tensor
    mask: Tensor


def sample(model: Any, tokenizer: Any, job: dict[str, Any], texts: list[str]) -> Batch:
    """Draw a response to every prompt, all at once."""
    own = model.generation_config.eos_token_id
    ends = [*(own if isinstance(own, list) else [own]), *stop_tokens(tokenizer, job["stop"])]
    prompts = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        whole = model.generate(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            do_sample=True,
            temperature=job["temperature"],
            top_k=0,
            max_new_tokens=job["new_tokens"],
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
    responses = whole[:, prompts.input_ids.shape[1] :]
    mask = response_mask(responses, torch.tensor(ends))
    seen = torch.cat([prompts.attention_mask.bool(), mask], 1)
    return Batch(whole=whole, seen=seen, responses=responses, mask=mask)


def update(
    model: Any, optimizer: Any, job: dict[str, Any], batch: Batch, advantages: Tensor
) -> None:
    """Take one optimizer step over all sequences, `micro_batch` of them at a time."""
    for begin in range(0, len(batch.whole), job["micro_batch"]):
        part = slice(begin, begin + job["micro_batch"])
        logits = model(
            input_ids=batch.whole[part],
            attention_mask=batch.seen[part].long(),
            logits_to_keep=batch.responses.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
        loss = loss_of(
            logits / job["temperature"],
            batch.responses[part],
            batch.mask[part],
            advantages[part],
            entropy=job["entropy"],
        )
        (loss / len(batch.whole)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), job["max_grad_norm"])
    optimizer.step()
    optimizer.zero_grad()


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train for the job's steps."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(job["seed"])
    order = random.Random(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=job["lr"],
        betas=tuple(job["betas"]),
        eps=job["eps"],
        weight_decay=job["weight_decay"],
        fused=True,
    )
    rows = pq.read_table(job["prompts"], columns=["prompt", "ground_truth"]).to_pylist()
    reward, samples = REWARDS[job["reward"]], job["samples"]
    found: dict[str, list[float]] = {"ends": [], "tokens": [], "rewards": []}
    first_step = time.time()
    for _ in range(job["steps"]):
        chosen = [
            row for row in order.sample(rows, job["prompts_per_step"]) for _ in range(samples)
        ]
        batch = sample(model, tokenizer, job, [row["prompt"] for row in chosen])
        texts = [
            tokenizer.decode(tokens[kept], skip_special_tokens=True)
            for tokens, kept in zip(batch.responses, batch.mask, strict=True)
        ]
        rewards = torch.tensor(
            [reward(text, row["ground_truth"]) for text, row in zip(texts, chosen, strict=True)]
        )
        update(model, optimizer, job, batch, advantages_of(rewards, samples))
        found["ends"].append(time.time())
        found["tokens"].append(int(batch.seen.sum()))
        found["rewards"].append(rewards.mean().item())
    return {"first_step": first_step, **found}


def main() -> None:
    """Read the job, train, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text(json.dumps(train(json.loads(options.job.read_text()))))


if __name__ == "__main__":
    main()
