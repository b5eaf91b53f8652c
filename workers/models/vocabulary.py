"""Token ids that a model folder knows, read from its files.

Configuration checks read them in the driver, before anything starts. Folders without a
`tokenizer.json` have no tokenizer that can be read so lightly; of them only the vocabulary's size
is known. Reads no weights and starts no engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


def vocab_size(folder: Path) -> int | None:
    """Return the rows of the model's embedding; None where `config.json` has no such number."""
    record = json.loads((folder / "config.json").read_text())
    size = record.get("text_config", record).get("vocab_size")
    return None if size is None else int(size)


def known_ids(folder: Path) -> int | None:
    """Return the number of ids that a text can have, where the model's head has more.

    Heads are padded to a round size: Qwen2.5's has 152,064 rows over a tokenizer of 151,665 ids.
    None where all rows have an id, or the tokenizer can't be read.
    """
    size = vocab_size(folder)
    if size is None or not (folder / TOKENIZER).exists():
        return None
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    known = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return known if 0 < known < size else None


def tokenizer_digest(folder: Path) -> str | None:
    """Return the SHA-256 of the tokenizer's map from text to ids; None where it can't be read."""
    if not (folder / TOKENIZER).exists():
        return None
    mapping = Tokenizer.from_file(str(folder / TOKENIZER)).get_vocab(with_added_tokens=True)
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()


def check_stop(folder: Path, key: str, *, token_ids: Sequence[int], texts: Sequence[str]) -> None:
    """Refuse what could never end a response of this model.

    Args:
        folder: of the model.
        key: of the configuration's section that holds both.
        token_ids: that end a response.
        texts: strings that end a response.

    Raises:
        ValueError: names the id or the string that the tokenizer lacks.
    """
    size = vocab_size(folder)
    tokenizer = None
    if (folder / TOKENIZER).exists() and (token_ids or texts):
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    for number in token_ids:
        known = tokenizer is None or tokenizer.id_to_token(number) is not None
        if not known or (size is not None and number >= size):
            have = size if tokenizer is None else tokenizer.get_vocab_size()
            raise ValueError(
                f"{key}.stop_token_ids={list(token_ids)}: the tokenizer of {folder.name} has no "
                f"token {number}, only {have}; name ids of that tokenizer"
            )
    for text in texts:
        if tokenizer is not None and not _can_spell(tokenizer, text):
            raise ValueError(
                f"{key}.stop={list(texts)}: the tokenizer of {folder.name} can't spell {text!r}, so"
                " no response would ever hold it; name a string that it can"
            )


def _can_spell(tokenizer: Tokenizer, text: str) -> bool:
    """Return True where every character of `text` can come out of a token."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    unknown = getattr(tokenizer.model, "unk_token", None)
    return bool(encoding.ids) and (unknown is None or unknown not in encoding.tokens)
