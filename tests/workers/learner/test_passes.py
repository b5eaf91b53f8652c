"""Two passes over one batch against a plain loop: one sequence at a time, full logits."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.cpgd import ClippedLogRatio
from workers.data.packing import pack
from workers.data.results import Rows
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
from workers.engines.zero.weights import ZeroSource
from workers.learner.passes import Trained, train_passes

CLIP, LR, TEMPERATURE = 0.2, 2.0, 0.8
LENGTHS = (6, 4, 5, 7)  # tokens; all but the first two train: 4 + 2 + 3 + 5 = 14
ADVANTAGES = (1.0, -1.0, 0.5, -0.5)
PASSES = (((0, 1), (2, 3)), ((1, 3), (0, 2)))  # rows of each update of each pass


@pytest.fixture(scope="module")
def model(save_llama: Callable[..., Path]) -> Path:
    """Of one layer."""
    return save_llama(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)


def sequences() -> list[torch.Tensor]:
    rng = np.random.default_rng(3)
    return [torch.from_numpy(rng.integers(3, 20, size=length)) for length in LENGTHS]


def logprobs(network: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probs [L - 2] of the tokens that train."""
    logits = network(tokens[None], use_cache=False).logits[0, :-1] / TEMPERATURE
    return logits.log_softmax(-1).gather(1, tokens[1:, None])[1:, 0]


def plain(model: Path, *, corrected: bool) -> tuple[dict[str, torch.Tensor], float]:
    """Weights after the passes of CPGD by SGD, and the largest |pi_epoch / pi_old - 1|."""
    network = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    tokens = sequences()
    with torch.no_grad():
        old = [logprobs(network, row) for row in tokens]
    furthest = 0.0
    for updates in PASSES:
        with torch.no_grad():
            epoch = [logprobs(network, row) for row in tokens]
        for rows in updates:
            network.zero_grad()
            count = sum(LENGTHS[row] - 2 for row in rows)
            for row in rows:
                drift = (epoch[row] - old[row]).exp()
                furthest = max(furthest, float((drift - 1).abs().max()))
                factor = drift.clamp(1 - CLIP, 1 + CLIP) if corrected else 1.0
                advantage = ADVANTAGES[row] * factor
                ratio = logprobs(network, tokens[row]) - old[row]
                bounded = ratio.clamp(math.log(1 - CLIP), math.log(1 + CLIP))
                loss = -torch.minimum(ratio * advantage, bounded * advantage).sum() / count
                loss.backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= LR * parameter.grad
    return {name: p.detach() for name, p in network.named_parameters()}, furthest


def through_the_engine(
    model: Path, *, corrected: bool
) -> tuple[dict[str, torch.Tensor], Trained, Rows]:
    """Weights after the passes, their results, and the log-probs of every row before."""
    algorithm = Algorithm(
        name="cpgd",
        advantage=GroupRelative(),
        policy_loss=ClippedLogRatio(clip_low=CLIP, clip_high=CLIP, epoch_correction=corrected),
        aggregation=TokenMean(),
    )
    optimizer = OptimizerSettings(name="sgd", lr=LR, max_grad_norm=math.inf)
    engine = PolicyEngine(ZeroSettings(model=str(model), optimizer=optimizer))
    tokens = sequences()
    masks = [np.arange(length) >= 2 for length in LENGTHS]
    columns = {
        "tokens": pa.array([row.numpy() for row in tokens], pa.list_(pa.int64())),
        "loss_mask": pa.array(masks, pa.list_(pa.bool_())),
    }
    old = engine.compute_logprobs([pack(columns)], temperature=TEMPERATURE).logprobs
    spread = [np.full(n, a) for n, a in zip(LENGTHS, ADVANTAGES, strict=True)]
    for name, values in (("old_logprobs", old), ("advantages", spread)):
        columns[name] = pa.array(list(values), pa.list_(pa.float32()))
    columns["rollout_logprobs"] = pa.array([row - 0.5 for row in old], pa.list_(pa.float32()))

    def update(rows: tuple[int, ...]) -> list:
        weights = np.full(len(LENGTHS), 1.0 / sum(LENGTHS[row] - 2 for row in rows))
        each = [pack(columns, [row], weights={"policy": weights}) for row in rows]
        return [*each, pack(columns, [], weights={"policy": weights})]  # and a filler

    trained = train_passes(
        engine,
        algorithm,
        ([update(rows) for rows in updates] for updates in PASSES),
        temperature=TEMPERATURE,
        old_is_current=False,
    )
    after = {name: value.clone() for name, value in ZeroSource(engine.hf_model)}
    engine.close()
    return after, trained, old


@pytest.mark.parametrize("corrected", [False, True])
def test_two_passes_are_the_plain_loop(model: Path, corrected: bool) -> None:
    expected, furthest = plain(model, corrected=corrected)
    found, trained, _ = through_the_engine(model, corrected=corrected)
    assert furthest > 0.05  # pi_epoch did leave pi_old, or nothing would be corrected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)
    assert [update.skipped for update in trained.updates] == [False] * 4
    assert len(trained.logprobs) == 4
    # |log pi_old - log mu| is 0.5 on each of the 14 tokens, counted once
    assert trained.gaps.shape == (14,)
    np.testing.assert_allclose(trained.gaps, 0.5, atol=1e-6)


def test_the_flags_of_a_row_are_those_of_the_last_update_that_trained_it(model: Path) -> None:
    _, trained, old = through_the_engine(model, corrected=False)
    last = [row for update in PASSES[-1] for row in update]
    clipped = []
    for row, now in zip(last, trained.logprobs, strict=True):
        ratio = np.exp(now - old[row])
        beyond = ratio > 1 + CLIP if ADVANTAGES[row] > 0 else ratio < 1 - CLIP
        clipped.append((beyond & (np.arange(LENGTHS[row]) >= 2)).astype(float).tolist())
    assert [flags.tolist() for flags in trained.flags] == clipped
    assert {value for flags in clipped for value in flags} == {0.0, 1.0}


def test_the_correction_is_seen_in_the_second_pass_only(model: Path) -> None:
    plain_passes, corrected = (
        through_the_engine(model, corrected=flag)[1].updates for flag in (False, True)
    )
    losses = [
        [update.metrics["loss"] for update in updates] for updates in (plain_passes, corrected)
    ]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] != losses[1][2]
