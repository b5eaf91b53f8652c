"""Read rows of prompt files by number: Parquet, JSON lines, and Arrow as `save_to_disk` writes it.

A file may be larger than memory: Parquet is read by row groups, of which the last used are kept up
to `CACHE_BYTES`; JSON lines are found by their place in the file; Arrow is mapped, not read. The
driver reads. A row is plain data here, and no prompt yet (`source.py`).
"""

from __future__ import annotations

import bisect
import json
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

CACHE_BYTES = 256 * 2**20  # of Parquet row groups, decoded; one group is kept whatever its size
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# Of a column, the later the stronger: a column with one record is a column of records.
VALUE, VALUES, RECORD, RECORDS = KINDS = ("value", "list", "record", "list of records")
MOST_DEPTH = 4  # of dotted names


class Rows(Protocol):
    """Rows of one source."""

    @property
    def files(self) -> Sequence[Path]:
        """Files, in the order of the rows."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """One of `KINDS` by column; a dot leads into a record: "reward_model.ground_truth"."""

    def __len__(self) -> int:
        """Count the rows."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return one row."""


def open_rows(path: Path) -> Rows:
    """Open a file, or a folder that holds files of one format.

    Raises:
        ValueError: the path does not exist, holds no such file, or can't be read.
    """
    if not path.exists():
        raise ValueError(f"prompt file {path} does not exist; check data.train_path")
    if (path / "dataset_dict.json").exists():
        splits = sorted(each.name for each in path.iterdir() if each.is_dir())
        raise ValueError(f"{path} holds several splits; name one of them: {', '.join(splits)}")
    if not path.is_dir():
        if path.suffix in JSON_SUFFIXES:
            return JsonRows([path])
        return ArrowRows([path]) if path.suffix == ".arrow" else ParquetRows([path])
    if (path / "state.json").exists():
        return ArrowRows(_saved_files(path))
    found = sorted(each for each in path.rglob("*") if each.is_file())
    for suffixes, kind in (
        ((".parquet",), ParquetRows),
        ((".arrow",), ArrowRows),
        (JSON_SUFFIXES[:2], JsonRows),
    ):
        if files := [each for each in found if each.suffix in suffixes]:
            return kind(files)
    raise ValueError(f"{path} holds no .parquet, .jsonl or .arrow file; it is no source of prompts")


def _saved_files(folder: Path) -> list[Path]:
    """List the files that `save_to_disk` wrote; the folder may hold caches of others beside."""
    try:
        state = json.loads((folder / "state.json").read_text())
        files = [folder / each["filename"] for each in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/state.json does not list data files: {error!r}") from error
    if not files:
        raise ValueError(f"{folder} holds no prompt; give a file with rows")
    return files


class ParquetRows:
    """Rows of Parquet files, a row group at a time."""

    def __init__(self, files: Sequence[Path], *, cache_bytes: int = CACHE_BYTES) -> None:
        self.files, self._cache_bytes = files, cache_bytes
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        kinds: list[dict[str, str]] = []
        for path in files:
            try:
                with pq.ParquetFile(path) as file:
                    kinds.append(dict(_kinds_of(file.schema_arrow)))
                    for group in range(file.num_row_groups):
                        self._groups.append((path, group))
                        sizes.append(file.metadata.row_group(group).num_rows)
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{path} is not readable as Parquet: {error}") from error
        self.kinds = {name: k for name, k in kinds[0].items() if all(name in one for one in kinds)}
        self._ends = list(accumulate(sizes))
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> dict[str, Any]:
        group, place = _place(self._ends, row)
        values: dict[str, Any] = self._table(group).slice(place, 1).to_pylist()[0]
        return values

    def _table(self, group: int) -> pa.Table:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        path, number = self._groups[group]
        with pq.ParquetFile(path) as file:
            table = self._cache[group] = file.read_row_group(number, use_threads=False)
        held = sum(each.nbytes for each in self._cache.values())
        while held > self._cache_bytes and len(self._cache) > 1:
            held -= self._cache.popitem(last=False)[1].nbytes
        return table


class ArrowRows:
    """Rows of Arrow files, mapped into memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._tables = [_mapped(path) for path in files]
        self.kinds = dict(_kinds_of(self._tables[0].schema))
        self._ends = list(accumulate(table.num_rows for table in self._tables))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        number, place = _place(self._ends, row)
        values: dict[str, Any] = self._tables[number].slice(place, 1).to_pylist()[0]
        return values


class JsonRows:
    """Rows of JSON lines, or of a JSON list, which is held in memory.

    All lines are read once, when the files are opened.

    Raises:
        ValueError: a line that is no JSON object; the message has its number.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.kinds: dict[str, str] = {}
        self._listed: list[dict[str, Any]] = []
        self._starts, self._file_of = array("Q"), array("L")
        for number, path in enumerate(files):
            if _begins_with_bracket(path):
                self._read_list(path, number)
            else:
                self._find_lines(path, number)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> dict[str, Any]:
        path, start = self.files[self._file_of[row]], self._starts[row]
        if self._listed and _begins_with_bracket(path):
            return dict(self._listed[start])
        with path.open("rb") as file:
            file.seek(start)
            values: dict[str, Any] = json.loads(file.readline())
        return values

    def _find_lines(self, path: Path, number: int) -> None:
        start = 0
        with path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                if line.strip():
                    self._check(line, f"line {line_number} of {path}")
                    self._starts.append(start)
                    self._file_of.append(number)
                start += len(line)

    def _read_list(self, path: Path, number: int) -> None:
        try:
            values = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        for place, value in enumerate(values):
            self._note(value, f"element {place} of {path}")
            self._starts.append(len(self._listed))
            self._file_of.append(number)
            self._listed.append(value)

    def _check(self, line: bytes, where: str) -> None:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {error}") from error
        self._note(value, where)

    def _note(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(
                f"{where} is no JSON object, but {type(value).__name__}: {value!r:.60}"
            )
        for name, kind in _kinds_in(value):
            self.kinds[name] = max(self.kinds.get(name, VALUE), kind, key=KINDS.index)


def _place(ends: Sequence[int], row: int) -> tuple[int, int]:
    """Return the part that holds a row, and the row's place in it."""
    part = bisect.bisect_right(ends, row)
    return part, row - (ends[part - 1] if part else 0)


def _begins_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        while (byte := file.read(1)).isspace():
            pass
    return byte == b"["


def _mapped(path: Path) -> pa.Table:
    try:
        try:
            return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        except pa.ArrowInvalid:  # the other of the two forms of Arrow files
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not readable as Arrow: {error}") from error


def _kinds_of(fields: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted name and kind of the fields of an Arrow schema or struct."""
    for field in fields:
        name, kind = f"{prefix}{field.name}", field.type
        if pa.types.is_struct(kind) or pa.types.is_map(kind):
            yield name, RECORD
            if pa.types.is_struct(kind):
                yield from _kinds_of(kind, f"{name}.")
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            yield name, RECORDS if pa.types.is_nested(kind.value_type) else VALUES
        else:
            yield name, VALUE


def _kinds_in(
    values: Mapping[str, Any], prefix: str = "", depth: int = 1
) -> Iterator[tuple[str, str]]:
    """Yield dotted name and kind of the values of a JSON object."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield name, RECORD
            if depth < MOST_DEPTH:
                yield from _kinds_in(value, f"{name}.", depth + 1)
        elif isinstance(value, list):
            yield name, RECORDS if any(isinstance(e, (dict, list)) for e in value) else VALUES
        else:
            yield name, VALUE
