"""TRL's GRPO trainer on a work: one of the programs of `peers.py`, in an environment of its own.

What it is: what a user of TRL would write, with its default generation on a CPU (Hugging Face
`generate`) and every setting that costs time without need turned off. What it is not: part of
Ballast, which it does not import. A job (`works.py`) in; seconds, tokens and rewards out.

    python tests/bench/programs/trl_grpo.py --job job.json --out result.json
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rewards import REWARDS


def settings(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the fields of `GRPOConfig`: the work's own, then what makes TRL fast at it.

    All samples of a step are drawn at once; a step is one update, whose batch is cut into
    `micro_batch` sequences where memory wants it.
    """
    sequences = job["prompts_per_step"] * job["samples"]
    return {
        "output_dir": folder,
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["micro_batch"],
        "gradient_accumulation_steps": sequences // job["micro_batch"],
        "num_generations": job["samples"],
        "max_completion_length": job["new_tokens"],
        "temperature": job["temperature"],
        "top_p": 1.0,
        "top_k": 0,
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta1": job["betas"][0],
        "adam_beta2": job["betas"][1],
        "adam_epsilon": job["eps"],
        "weight_decay": job["weight_decay"],
        "max_grad_norm": job["max_grad_norm"],
        "beta": 0.0,
        "epsilon": job["clip"],
        "entropy_coef": job["entropy"],
        "loss_type": "grpo",
        "scale_rewards": "group",
        "seed": job["seed"],
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def stop_tokens(tokenizer: Any, stops: list[str]) -> list[int]:
    """Return the tokens whose text holds one of the line breaks that end a response.

    Raises:
        ValueError: another text than a line break.
    """
    if set(stops) - {"\n"}:
        raise ValueError(f"stop={stops}: a response ends with a line break here, or has no stop")
    mark = "Ċ"  # a line break, in the vocabulary of a byte-level tokenizer
    return sorted(i for token, i in tokenizer.get_vocab().items() if stops and mark in token)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Run the trainer; a step's seconds are those between the ends of two steps."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    begins: list[float] = []
    ends: list[float] = []
    logs_of: list[dict[str, float]] = []

    class Record(TrainerCallback):  # type: ignore[misc]
        """The beginning of the first step, the end of every step, and what it logs."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            begins.append(time.time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.time())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "reward" in logs:
                logs_of.append({name: float(logs[name]) for name in ("reward", "num_tokens")})

    reward = REWARDS[job["reward"]]

    def score(completions: list[str], ground_truth: list[str], **_: Any) -> list[float]:
        return [reward(text, truth) for text, truth in zip(completions, ground_truth, strict=True)]

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    model.generation_config.eos_token_id = [*own, *stop_tokens(tokenizer, job["stop"])]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=score,
            args=trl.GRPOConfig(**settings(job, folder)),
            train_dataset=Dataset.from_parquet(job["prompts"], cache_dir=folder),
            callbacks=[Record()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    so_far = [0.0, *(logs["num_tokens"] for logs in logs_of)]
    return {
        "first_step": begins[0],
        "ends": ends,
        "tokens": [round(after - before) for before, after in itertools.pairwise(so_far)],
        "rewards": [logs["reward"] for logs in logs_of],
    }


def main() -> None:
    """Read the job, train, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text(json.dumps(train(json.loads(options.job.read_text()))))


if __name__ == "__main__":
    main()
