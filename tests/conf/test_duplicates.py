"""Two files for one choice end with one message that names both and the remedy."""

import pytest

from conf.compose import ConfigError, compose

BODY = """\
defaults: [_self_, {advantage: group_relative}, {gate: none}, {correction: none}, \
{aggregation: token_mean}]
_target_: algorithms.algorithm.Algorithm
policy_loss: {_target_: algorithms.policy_losses.clipped.ClippedRatio, clip_low: 0.3}
"""


def write(folder, member, name):
    path = folder / "algorithm" / f"{member}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{BODY}name: {name}\n")
    return path


def test_a_file_that_a_shipped_one_hides_is_refused(tmp_path):
    mine = write(tmp_path, "cpgd", "cpgd")
    message = rf"algorithm/cpgd is defined twice: .*conf/algorithm/cpgd.yaml hides {mine}; give"
    with pytest.raises(ConfigError, match=message) as caught:
        compose(["algorithm=cpgd"], config_dir=str(tmp_path))
    assert "my_cpgd.yaml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_search_path_given_as_an_override_is_looked_at_too(tmp_path):
    write(tmp_path, "dapo", "mine")
    with pytest.raises(ConfigError, match="algorithm/dapo is defined twice"):
        compose([f"hydra.searchpath=[file://{tmp_path}]"])


def test_two_algorithms_of_one_name_are_refused(tmp_path):
    mine = write(tmp_path, "mine", "cpgd")
    with pytest.raises(ConfigError, match=r"two algorithms are named 'cpgd': .*change `name:`"):
        compose(["algorithm=mine"], config_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=str(mine)):
        compose(["algorithm=cpgd"], config_dir=str(tmp_path))
    # Another choice is not disturbed by it.
    assert compose(["algorithm=grpo"], config_dir=str(tmp_path))[0].algorithm.name == "grpo"


def test_an_algorithm_of_ones_own_composes(tmp_path):
    write(tmp_path, "mine", "mine")
    raw, _ = compose(["algorithm=mine"], config_dir=str(tmp_path))
    assert raw.algorithm.policy_loss.clip_low == 0.3
