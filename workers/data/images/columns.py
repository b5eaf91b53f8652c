"""Convert images from the columns of a prompt file, and to the columns of a record.

The driver converts a prompt's cell, rollout workers write the record, and ranks read it. A file's
bytes stand in the record of every sibling and are stored once per batch: the column's values are
indices of a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from workers.data.images.spans import ImageSpan

#: Column `images`: the places of a row's images in its tokens.
SPAN_TYPE = pa.large_list(
    pa.struct(
        [
            ("offset", pa.int32()),
            ("length", pa.int32()),
            ("grid", pa.list_(pa.int32(), 3)),
            ("digest", pa.string()),
        ]
    )
)
#: Column `image_files`: the bytes of the file of each.
FILE_TYPE = pa.large_list(pa.dictionary(pa.int32(), pa.binary()))  # as Parquet reads it back


def spans_as_structs(spans: Sequence[ImageSpan]) -> list[dict[str, Any]]:
    """Return spans as values of `SPAN_TYPE`."""
    return [
        {"offset": s.offset, "length": s.length, "grid": list(s.grid), "digest": s.digest}
        for s in spans
    ]


def as_spans(values: Sequence[Mapping[str, Any]]) -> tuple[ImageSpan, ...]:
    """Return values of `SPAN_TYPE` as spans."""
    return tuple(
        ImageSpan(
            offset=value["offset"],
            length=value["length"],
            grid=(value["grid"][0], value["grid"][1], value["grid"][2]),
            digest=value["digest"],
        )
        for value in values
    )


def sources_of(cell: object, folder: Path) -> tuple[str | bytes, ...]:
    """Return the paths or bytes of a cell of an image column, in order.

    A cell is a path, a `file://` address, bytes, a struct of `bytes` and `path` as data sets on the
    hub have it, a list of these, or null. A relative path starts at the folder of the prompt file.

    Raises:
        ValueError: a cell of another type.
    """
    if cell is None:
        return ()
    if isinstance(cell, list):
        return tuple(source for one in cell for source in sources_of(one, folder))
    if isinstance(cell, Mapping) and (cell.get("bytes") or cell.get("path")):
        return sources_of(cell.get("bytes") or cell["path"], folder)
    if isinstance(cell, bytes):
        return (cell,)
    if isinstance(cell, str):
        return (cell if urlsplit(cell).scheme else str(folder.absolute() / cell),)
    raise ValueError(
        f"the image column holds a {type(cell).__name__}: {str(cell)[:80]!r}; give "
        "paths, bytes, or structs of bytes and path"
    )
