"""`ballast metrics [NAME]`: the glossary, or what a name finds in it."""

import pytest

from orchestrator.cli.metrics import find, table
from orchestrator.cli.parser import main
from orchestrator.telemetry.glossary import GLOSSARY, Metric


def names(found):
    return [metric.name for metric in found]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("reward/std", ["reward/std"]),
        ("erc", ["erc/mask_frac", "erc/mask_low_frac", "erc/mask_high_frac", "erc/entropy_ratio"]),
        ("drift/*", ["drift/squared_log_ratio", "drift/kl_k3", "drift/cap_frac"]),
        ("*/lr", ["learner/lr", "critic/lr"]),
        ("bubble/learner/idle_frac", ["bubble/<role>/<activity>_frac"]),
        ("eval/pass@8", ["eval/pass@<k>"]),
        # A whole name is not taken for a part of another one, `learner/loss` of critic's.
        ("policy/clip_frac", ["policy/clip_frac"]),
    ],
)
def test_a_name_a_part_or_a_pattern_finds_metrics(asked, found):
    assert names(find(asked)) == found


def test_without_a_name_all_are_listed(capsys):
    assert main(["metrics"]) == 0
    output = capsys.readouterr().out
    assert [metric.name for metric in GLOSSARY if f"  {metric.name} " not in output] == []


def test_a_name_that_finds_nothing_ends_with_2_and_the_nearest(capsys):
    assert main(["metrics", "reward/meen"]) == 2
    assert "no metric is named 'reward/meen'; the nearest are reward/mean, " in (
        capsys.readouterr().err
    )


def test_the_table_says_once_when_and_wraps_the_meaning():
    rows = [
        Metric(name="a/b", unit="s", meaning="one two three four five six", when="every step"),
        Metric(name="a/long", unit="bytes", meaning="seven", when="every step"),
        Metric(name="c/d", unit="1", meaning="eight", when="at the end"),
    ]
    assert table(rows, columns=40).splitlines() == [
        "every step:",
        "  a/b     s      one two three four five",
        "                 six",
        "  a/long  bytes  seven",
        "",
        "at the end:",
        "  c/d     1      eight",
    ]
