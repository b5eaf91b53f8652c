"""Products of two numbers as chat messages, for a policy that has a calculator.

"37*58" is answered by "2146", which no small model computes: the policy has to call
`calculate(expression="37*58")` and to copy the result. `build_product_demonstrations` writes such
rollouts, turn by turn, for a warm start: a policy of random weights never calls by chance. Runs in
the driver and in `ballast data`. Scores nothing: the reward is an exact match of the answer.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa

from workers.models.tokenizer import EOS, build_tokenizer
from workers.tasks.tables import MESSAGES, TaskTables, build_folder, text_table

DATASET = "products"
NUMBERS = range(10, 100)


def products(*, num_train: int = 4096, num_eval: int = 128, seed: int = 0) -> TaskTables:
    """Make prompts for ordered pairs of two-digit numbers, in shuffled order.

    Args:
        num_train: rows to train on; with `num_eval` at most 8,100, all pairs.
        num_eval: rows held out.
        seed: of the split and the order.

    Raises:
        ValueError: more rows than there are pairs.
    """
    train, heldout = _split(num_train, num_eval, seed)
    return TaskTables(train=_table(train), heldout=_table(heldout))


def demonstrations(*, num_train: int = 4096, num_eval: int = 128, seed: int = 0) -> TaskTables:
    """Make the two turns of the rollouts that answer the rows of `products`, as plain text.

    The ground truth of a row is what the policy says behind its prompt: the call, or the answer.
    """
    train, heldout = _split(num_train, num_eval, seed)
    return TaskTables(train=_turns(train), heldout=_turns(heldout))


def build_products(
    folder: str | Path | None = None, *, num_train: int = 4096, num_eval: int = 128, seed: int = 0
) -> Path:
    """Write `products(...)` under `folder` once, return the folder; see there for the rest."""
    arguments = {"num_train": num_train, "num_eval": num_eval, "seed": seed}
    return build_folder(folder, {"task": DATASET, **arguments}, lambda: products(**arguments))


def build_product_demonstrations(
    folder: str | Path | None = None, *, num_train: int = 4096, num_eval: int = 128, seed: int = 0
) -> Path:
    """Write `demonstrations(...)` under `folder` once, return the folder."""
    arguments = {"num_train": num_train, "num_eval": num_eval, "seed": seed}
    return build_folder(
        folder,
        {"task": "product_demonstrations", **arguments},
        lambda: demonstrations(**arguments),
    )


def _split(
    num_train: int, num_eval: int, seed: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    pairs = [(a, b) for a in NUMBERS for b in NUMBERS]
    if num_train + num_eval > len(pairs):
        raise ValueError(
            f"there are {len(pairs)} products of two-digit numbers, fewer than num_train="
            f"{num_train} and num_eval={num_eval} together; ask for fewer"
        )
    random.Random(seed).shuffle(pairs)
    return pairs[num_eval : num_eval + num_train], pairs[:num_eval]


def _table(pairs: list[tuple[int, int]]) -> pa.Table:
    return pa.table(
        {
            "prompt": pa.array([_messages(a, b) for a, b in pairs], MESSAGES),
            "ground_truth": pa.array([str(a * b) for a, b in pairs], pa.string()),
            "dataset": pa.array([DATASET] * len(pairs), pa.string()),
        }
    )


def _turns(pairs: list[tuple[int, int]]) -> pa.Table:
    tokenizer = build_tokenizer(model_max_length=512)

    def rendered(messages: list[dict[str, str]]) -> str:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return str(text)

    rows = []
    for a, b in pairs:
        opening = rendered(_messages(a, b))
        call = f'[calculate(expression="{a}*{b}")]'
        shown = rendered([{"role": "tool", "content": str(a * b)}])
        rows += [(opening, call), (f"{opening}{call}{EOS}\n{shown}", str(a * b))]
    return text_table(f"{DATASET}_turns", rows)


def _messages(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{a}*{b}"}]
