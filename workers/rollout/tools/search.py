"""Search a local corpus by BM25: the search engine of `environment=tools`.

Runs in a tool process. The index is built once for each corpus, in the cache of built folders, and
mapped from there, so that all tool processes of a node share its memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from workers.models.cache import build_once, default_path
from workers.rollout.tools.toolset import Function, Functions


@dataclass(frozen=True, kw_only=True)
class Search(Functions):
    """Toolset of one tool, `search`, over the rows of a Parquet file.

    Example: Search(path="data/wiki.parquet", column="text", num_results=3)

    Attributes:
        path: of the file; read by every node that samples.
        column: of the passages.
        num_results: passages that a search returns at most.
    """

    path: str = ""
    column: str = "text"
    num_results: int = 3

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("search needs a corpus: set its `path` to a Parquet file")
        if self.num_results < 1:
            raise ValueError(f"num_results must be at least 1, got {self.num_results}")

    def functions(self) -> Sequence[Function]:
        """See `Functions`."""
        return [self.search]

    def prepare(self) -> None:
        """Build the index, or map the one that was built before.

        Raises:
            ValueError: there is no such file, no such column, or no passage.
        """
        super().prepare()
        self.search("anything")

    def search(self, query: str) -> str:
        """Search a collection of texts and return the passages that match best.

        Args:
            query: a few words.
        """
        import bm25s

        words = bm25s.tokenize([query], stopwords=None, return_ids=False, show_progress=False)
        if not words[0]:
            return "no results: the query has no words"
        count = min(self.num_results, len(self._passages))
        rows, scores = self._index.retrieve(words, k=count, show_progress=False)
        found = [
            str(self._passages[int(row)].as_py())
            for row, score in zip(rows[0], scores[0], strict=True)
            if score > 0
        ]
        texts = [f"[{number}] {passage}" for number, passage in enumerate(found, start=1)]
        return "\n\n".join(texts) or "no results"

    @cached_property
    def _passages(self) -> Any:
        file = Path(self.path)
        if not file.is_file():
            raise ValueError(f"{file} does not exist; the corpus of a search is a Parquet file")
        names = pq.read_schema(file).names
        if self.column not in names:
            raise ValueError(f"{file} has no column {self.column!r}; it has {', '.join(names)}")
        passages = pq.read_table(file, columns=[self.column], memory_map=True)[self.column]
        if len(passages) == 0:
            raise ValueError(f"{file} holds no passage")
        return passages

    @cached_property
    def _index(self) -> Any:
        import bm25s

        passages = self._passages
        recipe = {
            "index": "bm25s",
            "version": bm25s.__version__,
            "corpus_sha256": _digest(Path(self.path)),
            "column": self.column,
        }

        def write(folder: Path) -> None:
            texts = [str(passage or "") for passage in passages.to_pylist()]
            words = bm25s.tokenize(texts, stopwords=None, show_progress=False)
            index = bm25s.BM25()
            index.index(words, show_progress=False)
            index.save(folder)

        folder = build_once(default_path(recipe, "bm25", kind="indexes"), recipe, write)
        return bm25s.BM25.load(folder, mmap=True)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
