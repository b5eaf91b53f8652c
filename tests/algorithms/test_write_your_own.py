"""The example of algorithms/README.md, run as a reader would run it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from algorithms.algorithm import Algorithm
from algorithms.conformance import run
from algorithms.gates import EntropyRatioClip

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "algorithms" / "README.md").read_text()
FILES = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's files on disk, importable."""
    for name, text in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(
        name="algorithm_only",
        node={
            "defaults": [{"algorithm": "grpo"}, "_self_"],
            "rollout": {"sampling": {"max_new_tokens": 16}},
        },
    )
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        yield tmp_path


def composed(own: Path, *overrides: str) -> DictConfig:
    search_path = f"hydra.searchpath=[file://{own / 'my_conf'}]"
    return compose("algorithm_only", overrides=[search_path, *overrides]).algorithm


def test_the_example_is_there() -> None:
    assert [name for name, _ in FILES] == ["my_losses.py", "my_conf/algorithm/quadratic.yaml"]


def test_the_example_conforms(own: Path) -> None:
    algorithm = instantiate(composed(own, "algorithm=quadratic"), _convert_="all")
    assert isinstance(algorithm, Algorithm)
    assert algorithm.required_columns == {"old_logprobs"}
    report = run(algorithm)
    assert report.passed, report.table()


def test_the_example_mixes_with_shipped_parts(own: Path) -> None:
    config = composed(own, "algorithm=quadratic", "algorithm/gate=erc", "algorithm/advantage=rloo")
    algorithm = instantiate(config, _convert_="all")
    assert algorithm.gates == {"erc": EntropyRatioClip()}
    assert "LeaveOneOut" in repr(algorithm)
    with pytest.raises(Exception, match="strength=-1 is negative"):
        instantiate(composed(own, "algorithm=quadratic", "algorithm.policy_loss.strength=-1"))


def test_every_shipped_option_is_in_the_readme() -> None:
    conf = ROOT / "conf" / "algorithm"
    for path in conf.glob("*/*.yaml"):
        row = re.search(rf"\| {path.parent.name} \| (.*?) \|", README)
        assert row is not None
        assert path.stem in row.group(1).split(), path
    index = README[README.index("## Paper index") : README.index("### Where this differs")]
    for path in conf.glob("*.yaml"):
        assert re.search(rf"[|,] {path.stem}[ ,]", index), path


def test_every_metric_is_in_the_glossary() -> None:
    glossary = README[README.index("## Metrics") : README.index("## Write your own")]
    sources = list((ROOT / "algorithms").rglob("*.py"))
    pattern = r'f?"((?:policy|rpg|drift|erc|mismatch|value|credit)/[a-z0-9_]+)"'
    names = {name for path in sources for name in re.findall(pattern, path.read_text())}
    assert len(names) > 20
    for name in names:
        assert name.split("/")[1] in glossary, name
