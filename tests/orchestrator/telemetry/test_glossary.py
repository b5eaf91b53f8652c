"""The glossary lists what the code emits, and nothing else.

A metric is emitted where its name is the key of a dictionary, plain or with a hole for a name that
the run puts there. Where the hole has a fixed list of fillings, the test fills it.
"""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.supply.evaluation import summarise
from orchestrator.telemetry.glossary import GLOSSARY, Metric
from orchestrator.telemetry.heldout import HeldoutAnswer

ROOT = Path(__file__).parents[3]
ROOMS = ("algorithms", "orchestrator", "workers")
HOLE = "{}"
# A rehearsal imitates what others emit.
IMITATES = "orchestrator/rehearsal"
# Ranks other than 0 time their part of a publication by gloo, and nobody asks for it.
UNREPORTED = {"publication/gather_s"}


def sources():
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    }


SOURCES = sources()


def text_of(node):
    """A string constant, or an f-string with holes; else None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else HOLE for v in node.values)
    return None


def keys_of(tree):
    """Every key that the code writes into a dictionary, and every text that has fillings."""
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Dict):
            found = node.keys
        elif isinstance(node, ast.DictComp):
            found = [node.key]
        elif isinstance(node, ast.Assign):
            found = [t.slice for t in node.targets if isinstance(t, ast.Subscript)]
        elif isinstance(node, ast.JoinedStr) and text_of(node) in FILLINGS | UPDATES:
            found = [node]
        yield from filter(None, map(text_of, found))


def arguments_of(method):
    """First arguments of all calls of a method, where they are constants."""
    return {
        node.args[0].value
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == method
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def heldout_scores():
    answers = [
        HeldoutAnswer(
            prompt_uid="p", prompt="", response="", ground_truth="", reward=1.0, outcome="scored"
        )
    ] * 2
    abstained = [replace(answer, reward=None, outcome="dropped:abstained") for answer in answers]
    scores = {*summarise(answers), *summarise(abstained)}
    # The last three by the evaluator itself, one of them of a named set.
    return {*scores, "response_tokens_mean", "newer_weights_frac", "any/mean"}


FILLINGS = {
    "time/{}_s": arguments_of("span"),
    "publication/{}_s": {*arguments_of("phase"), "total"},
    "ledger/{}": {"trained", "dropped", "in_flight"},  # Ledger.counts
    "eval/{}": heldout_scores(),
}
# Names whose area is a hole (workers/learner/step_metrics.py): the learner's and the critic's.
UPDATES = {
    "{}/{}": {"loss", "num_tokens"},  # what an update counts without an area
    "{}/grad_norm": {"grad_norm"},
    "{}/lr": {"lr"},
    "{}/loss_scale": {"loss_scale"},
    "{}/skipped_updates": {"skipped_updates"},
}


def emitted():
    """Names that code emits, with "any" in a hole that a run fills; where each is."""
    names = {}
    for path, tree in SOURCES.items():
        if path.startswith(IMITATES):
            continue
        for key in keys_of(tree):
            if path.endswith("step_metrics.py") and key in UPDATES:
                own = {f"{area}/{name}" for area in ("learner", "critic") for name in UPDATES[key]}
                names |= dict.fromkeys(own, path)
            if re.fullmatch(r"[a-z]+/[\w{}@/]+", key):
                fillings = FILLINGS.get(key, {"any"} if HOLE in key else {""})
                names |= {key.replace(HOLE, filling): path for filling in fillings}
    return {name: path for name, path in names.items() if name not in UNREPORTED}


def test_every_emitted_metric_is_in_the_glossary():
    names = emitted()
    assert len(names) > 120
    missing = {n: p for n, p in names.items() if not any(m.covers(n) for m in GLOSSARY)}
    assert missing == {}


def test_every_metric_of_the_glossary_is_emitted():
    names = emitted()
    assert [m.name for m in GLOSSARY if not any(m.covers(name) for name in names)] == []


def test_every_metric_that_code_reads_is_in_the_glossary():
    areas = "|".join(sorted({metric.name.partition("/")[0] for metric in GLOSSARY}))
    named = {
        (path, text)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if (text := text_of(node)) is not None and re.fullmatch(rf"({areas})/\w*[a-z0-9]", text)
    }
    assert len(named) > 120
    assert [read for read in named if not any(m.covers(read[1]) for m in GLOSSARY)] == []


def test_the_guide_names_metrics_that_exist():
    guide = (ROOT / "orchestrator/telemetry/README.md").read_text()
    areas = "|".join(sorted({metric.name.partition("/")[0] for metric in GLOSSARY}))
    named = re.findall(rf"`((?:{areas})/[\w/]+)`", guide)
    assert len(named) > 20
    assert [name for name in named if not any(m.covers(name) for m in GLOSSARY)] == []


def test_no_name_is_listed_twice():
    names = [metric.name for metric in GLOSSARY]
    assert len(set(names)) == len(names)


def test_a_name_says_its_unit():
    endings = {"_s": "s", "_bytes": "bytes", "_frac": "share"}
    wrong = [
        metric.name
        for metric in GLOSSARY
        for ending, unit in endings.items()
        if metric.name.endswith(ending) and not metric.name.endswith("_per_s")
        if metric.unit != unit and metric.name != "ledger/epoch_frac"
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("bubble/learner/idle_frac", True),
        ("bubble/rollout/wait_for_reward_frac", True),
        ("bubble/learner_frac", False),
        ("bubble/<role>/<activity>_frac", True),
        ("abubble/learner/idle_frac", False),
    ],
)
def test_a_family_covers_the_names_of_its_form(name, covered):
    family = Metric(name="bubble/<role>/<activity>_frac", unit="share", meaning="", when="")
    assert family.covers(name) is covered
