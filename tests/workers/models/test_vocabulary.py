"""What a model folder says of its token ids without a model being loaded."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from workers.models.vocabulary import check_stop, tokenizer_digest, vocab_size


def folder_of(path, config, words=None):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if words is not None:
        tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_the_size_stands_in_the_configuration(tmp_path):
    assert vocab_size(folder_of(tmp_path / "text", {"vocab_size": 64})) == 64
    nested = {"text_config": {"vocab_size": 32}, "vocab_size": 7}
    assert vocab_size(folder_of(tmp_path / "nested", nested)) == 32
    assert vocab_size(folder_of(tmp_path / "silent", {})) is None


def test_the_digest_is_of_the_mapping_alone(tmp_path):
    one = folder_of(tmp_path / "one", {}, ["<unk>", "a", "b"])
    same = folder_of(tmp_path / "same", {"vocab_size": 3}, ["<unk>", "a", "b"])
    swapped = folder_of(tmp_path / "swapped", {}, ["<unk>", "b", "a"])
    assert tokenizer_digest(one) == tokenizer_digest(same)
    assert tokenizer_digest(one) != tokenizer_digest(swapped)
    assert tokenizer_digest(folder_of(tmp_path / "none", {})) is None


def test_a_stop_that_can_never_come_is_refused(tmp_path):
    folder = folder_of(tmp_path / "model", {"vocab_size": 3}, ["<unk>", "a", "b"])
    check_stop(folder, "rollout.sampling", token_ids=[2], texts=["a", "b"])
    with pytest.raises(ValueError, match=r"rollout\.sampling\.stop_token_ids=\[3\].*no token 3"):
        check_stop(folder, "rollout.sampling", token_ids=[3], texts=[])
    with pytest.raises(ValueError, match="can't spell 'c'"):
        check_stop(folder, "rollout.sampling", token_ids=[], texts=["c"])


def test_without_a_tokenizer_the_size_alone_decides(tmp_path):
    folder = folder_of(tmp_path / "model", {"vocab_size": 3})
    check_stop(folder, "eval", token_ids=[2], texts=["anything"])
    with pytest.raises(ValueError, match="no token 3, only 3"):
        check_stop(folder, "eval", token_ids=[3], texts=[])
