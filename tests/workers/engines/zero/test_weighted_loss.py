"""Metrics of an update are reduced by name, over micro-batches and over ranks."""

import json
import math
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import run_ranks

from algorithms.inputs import TokenLoss
from workers.data.packing import pack, pack_sequences
from workers.engines.zero.weighted_loss import MetricSums, reduced_metrics, weighted_sum

CPU = torch.device("cpu")


def test_ranks_with_different_names_keep_every_number_under_its_own(tmp_path: Path) -> None:
    out = run_ranks(Path(__file__).parent / "metrics_rank.py", tmp_path, 2)
    expected = {
        "loss": 0.5,  # 0.25 + 0.25
        "num_tokens": 4.0,
        "policy/both": 1.5,
        "policy/both_max": 2.0,
        "policy/zero": 5.0,  # over the two tokens that measured it
        "policy/one": 5.0,
        "policy/zero_min": 7.0,
        "policy/one_min": 7.0,
    }
    assert json.loads(out.read_text()) == [expected, expected]


def test_masked_tokens_and_a_filler_are_in_no_metric() -> None:
    sums = MetricSums()
    batch = pack_sequences([[5, 6, 7]])  # the first token does not train
    values = torch.tensor([math.nan, 2.0, 4.0])
    sums.add(batch, {"a/mean": values, "a/of_max": values, "a/of_min": values}, torch.zeros(()))
    filler = pack({"tokens": pa.array([[5, 6]])}, [])
    empty = torch.full((filler.num_tokens,), 99.0)
    sums.add(filler, {"a/mean": empty, "a/of_max": empty, "a/of_min": empty}, torch.zeros(()))
    (metrics,) = reduced_metrics([sums], CPU)
    assert metrics == {
        "loss": 0.0,
        "num_tokens": 2.0,
        "a/mean": 3.0,
        "a/of_max": 4.0,
        "a/of_min": 2.0,
    }


def test_a_metric_may_not_take_the_name_of_the_loss() -> None:
    batch = pack_sequences([[5, 6, 7]])
    with pytest.raises(ValueError, match="metric 'loss' is the update's own; call it policy/loss"):
        MetricSums().add(batch, {"loss": torch.zeros(3)}, torch.zeros(()))


def test_the_loss_is_the_sum_over_trained_tokens_of_term_times_weight() -> None:
    batch = pack(
        {
            "tokens": pa.array([[5, 6, 7], [8, 9]]),
            "loss_mask": pa.array([[False, True, True], [False, True]]),
        },
        weights={"policy": [0.5, 0.25]},
    )
    term = torch.tensor([math.nan, 2.0, 4.0, math.nan, 8.0], requires_grad=True)
    flags = torch.zeros(5, dtype=torch.uint8)
    total = weighted_sum(batch, TokenLoss(terms={"policy": term}, metrics={}, flags=flags))
    assert total.item() == 5.0  # 0.5 * (2 + 4) + 0.25 * 8
    total.backward()
    assert term.grad is not None
    assert term.grad.tolist() == [0.0, 0.5, 0.5, 0.0, 0.25]
