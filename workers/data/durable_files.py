"""Write files that are on disk when the call returns, and record their size and SHA-256.

Learner ranks, Ray tasks and the driver write files here; the driver also checks a folder. The hash
is taken from the bytes while they are written, so no second reading is needed; `sha256sum` prints
the same hash. The module does not know the meaning of a folder of such files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 24  # written and hashed at a time; both let other threads run meanwhile
READERS = 4  # files hashed at a time when a folder is checked


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """Size and hash of a file as it was written; `path` is relative to its folder.

    Example:
        FileRecord(path="groups.arrow", num_bytes=3, sha256="ba7816bf8f01cfea...")
    """

    path: str
    num_bytes: int
    sha256: str

    def within(self, folder: str) -> FileRecord:
        """Return the record with a path relative to the parent of `folder`."""
        return FileRecord(
            path=f"{folder}/{self.path}", num_bytes=self.num_bytes, sha256=self.sha256
        )


def write_file(path: Path, parts: Iterable[Any]) -> FileRecord:
    """Write the concatenation of `parts` and flush it to the disk.

    Raises:
        OSError: a full disk, a quota, a limit; what was written so far stays, without a record.
    """
    digest, total = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), CHUNK_BYTES):
                chunk = view[start : start + CHUNK_BYTES]
                file.write(chunk)
                digest.update(chunk)
                total += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(path=path.name, num_bytes=total, sha256=digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder: a file's own flush does not cover them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_fault(folder: Path, records: Iterable[FileRecord]) -> str | None:
    """Describe the first file that differs from its record; None if all files are as written.

    Sizes are compared first, so that a missing or short file costs no reading.
    """
    records = list(records)
    for record in records:
        path = folder / record.path
        if not path.is_file():
            return f"{path} is missing"
        if (found := path.stat().st_size) != record.num_bytes:
            return f"{path} has {found} bytes, {record.num_bytes} were written"
    with ThreadPoolExecutor(READERS) as pool:
        hashes = pool.map(lambda record: _hash(folder / record.path), records)
        for record, found_hash in zip(records, hashes, strict=True):
            if found_hash != record.sha256:
                return (
                    f"{folder / record.path} is not what was written: its SHA-256 begins with "
                    f"{found_hash[:12]}, {record.sha256[:12]} was recorded"
                )
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def records_to_json(records: Iterable[FileRecord]) -> dict[str, Any]:
    """Convert records to plain data: path -> size and hash."""
    return {record.path: {"bytes": record.num_bytes, "sha256": record.sha256} for record in records}


def records_from_json(data: dict[str, Any]) -> list[FileRecord]:
    """Rebuild the records from the output of `records_to_json`."""
    return [
        FileRecord(path=path, num_bytes=entry["bytes"], sha256=entry["sha256"])
        for path, entry in data.items()
    ]
