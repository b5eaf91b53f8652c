"""Give every token of a sample its piece of the text.

Runs beside the rest of the report. The tokenizer's file lies in the model's folder, which the run's
manifest names; without it a token is shown as its number. No model hub is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

UNFINISHED = "\ufffd"  # bytes of a character that the next token completes


class TokenTexts:
    """Texts of token ids.

    Args:
        tokenizer: of the `tokenizers` package; None where the file is gone.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer
        self._after = lru_cache(maxsize=200_000)(self._difference)

    @classmethod
    def of_model(cls, folder: str | None) -> TokenTexts:
        """Load the tokenizer of a model's folder; numbers only where it can't be read."""
        path = Path(folder or "") / "tokenizer.json"
        if not folder or not path.exists():
            return cls(None)
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception:  # the package raises bare Exception for a file of another version
            return cls(None)

    @property
    def known(self) -> bool:
        """Return True where ids have texts."""
        return self._tokenizer is not None

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of several tokens together, special ones with it."""
        if self._tokenizer is None:
            return " ".join(map(str, ids))
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return one piece per token; joined, the pieces are the text.

        A character of several tokens stands in the last one, and the others are empty.
        """
        if self._tokenizer is None:
            return [f"{number} " for number in ids]
        found: list[str] = []
        before: tuple[int, ...] = ()
        pending: tuple[int, ...] = ()
        for number in ids:
            pending = (*pending, int(number))
            piece = self._after(before, pending)
            if piece.endswith(UNFINISHED) and len(pending) < 4:
                found.append("")
                continue
            found.append(piece)
            before, pending = pending[-1:], ()
        if pending:
            found[-1] = self._after(before, pending)
        return found

    def _difference(self, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
        # Decoded behind the token before: a tokenizer may drop a space at the begin of a text.
        head = self.text(before) if before else ""
        whole = self.text((*before, *ids))
        return whole[len(head) :] if whole.startswith(head) else self.text(ids)
