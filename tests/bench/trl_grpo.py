"""TRL's GRPO trainer on the work of `experiment=tiny`: one side of `trl_comparison.py`.

    python trl_grpo.py --model FOLDER --prompts train.parquet --steps 60 --out result.json

What it is: what a user of TRL would write for this task, with its default generation on CPU
(Hugging Face `generate`) and every setting that costs time without need turned off. What it is
not: part of Ballast, which it does not import; it runs in an environment of its own, with the
threads that `OMP_NUM_THREADS` allows. A model folder and Parquet prompts in, a JSON file of seconds
and rewards per step out.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def positions(completions: list[str], ground_truth: list[str], **_: Any) -> list[float]:
    """Half the fraction of right positions, and half whether all is right: reward=positions."""
    rewards = []
    for response, truth in zip(completions, ground_truth, strict=True):
        right = sum(a == b for a, b in zip(response, truth, strict=False)) / len(truth)
        rewards.append(0.5 * float(response == truth) + 0.5 * right)
    return rewards


def settings(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Fields of `GRPOConfig`: the work of the experiment, then what makes TRL fast at it."""
    return {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.prompts_per_step * options.samples,
        "num_generations": options.samples,
        "max_completion_length": options.new_tokens,
        "temperature": 1.0,
        "learning_rate": options.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "beta": 0.0,
        "entropy_coef": options.entropy,
        "loss_type": "grpo",
        "seed": 0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the trainer; seconds are from the end of a step to the end of the next."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    ends: list[float] = []
    rewards: list[float] = []

    class Record(TrainerCallback):  # type: ignore[misc]
        """The end of every step, and the reward that it logs."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "reward" in logs:
                rewards.append(float(logs["reward"]))

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
            reward_funcs=positions,
            args=trl.GRPOConfig(**settings(options, folder)),
            train_dataset=Dataset.from_parquet(str(options.prompts), cache_dir=folder),
            callbacks=[Record()],
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
    seconds = [end - start for start, end in zip([began, *ends], ends, strict=False)]
    return {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "step_s": seconds,
        "rewards": rewards,
    }


def main() -> int:
    """Parses the command line, trains, writes."""
    if len(sys.argv) == 1:
        print("nothing to do alone: trl_comparison.py runs this in the environment of TRL")
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8, help="per prompt")
    parser.add_argument("--new-tokens", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--entropy", type=float, default=0.05, help="coefficient of the bonus")
    options = parser.parse_args()
    options.out.write_text(json.dumps(train(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
