from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.rollout.tools.search import Search

TEXTS = [
    "The moon is a satellite of the earth.",
    "A comet has a tail of dust and gas.",
    "The tail of a peacock has many colours.",
]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path)
    return path


def test_a_search_finds_the_passages_that_share_its_words_best_first(corpus: Path):
    tool = Search(path=str(corpus), num_results=2)
    tool.prepare()
    assert tool.call("search", {"query": "dust of a comet's tail"}) == (
        "[1] A comet has a tail of dust and gas.\n\n[2] The tail of a peacock has many colours."
    )
    assert tool.call("search", {"query": "zebra"}) == "no results"
    assert tool.call("search", {"query": "?"}) == "no results: the query has no words"


def test_the_index_of_a_corpus_is_built_once_and_mapped_by_the_next_process(corpus: Path):
    Search(path=str(corpus)).prepare()
    folders = sorted((corpus.parent / "cache" / "indexes").iterdir())
    stamps = [path.stat().st_mtime_ns for path in folders[0].iterdir()]
    second = Search(path=str(corpus), num_results=10)
    second.prepare()
    assert [path.stat().st_mtime_ns for path in folders[0].iterdir()] == stamps
    assert str(second.call("search", {"query": "moon"})) == f"[1] {TEXTS[0]}"


def test_a_search_without_a_usable_corpus_is_refused(corpus: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="set its `path`"):
        Search()
    with pytest.raises(ValueError, match="at least 1"):
        Search(path=str(corpus), num_results=0)
    with pytest.raises(ValueError, match="does not exist"):
        Search(path=str(tmp_path / "none.parquet")).prepare()
    with pytest.raises(ValueError, match="no column 'body'; it has text"):
        Search(path=str(corpus), column="body").prepare()
