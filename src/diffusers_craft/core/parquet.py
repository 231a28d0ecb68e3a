# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Parquet files in which a changed byte is noticed: their pages have checksums, their footer a hash of itself.

The hash is also of a key, so that a file in another one's place is noticed.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


# In the file's own metadata, with zeros while the hash is made: Parquet has no checksum of the footer.
_MARK, _BLANK = b"footer-sha256:", b"0" * 64
_TAIL = 8  # bytes after the footer: its length, and the format's name


def parquet_bytes(table: pa.Table, key: str) -> bytearray:
    """A Parquet file, with the same bytes for the same rows and key."""
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({"check": (_MARK + _BLANK).decode()})
    # No dictionaries and statistics: columns are mostly images, and statistics would repeat their bytes.
    options = {"compression_level": 1, "use_dictionary": False, "write_statistics": False}
    pq.write_table(marked, sink, compression="zstd", write_page_checksum=True, **options)
    data = bytearray(memoryview(sink.getvalue()))
    start = len(data) - _TAIL - int.from_bytes(data[-_TAIL:-4], "little")
    place = data.rindex(_MARK, start) + len(_MARK)
    data[place : place + len(_BLANK)] = _hash(data[start:-_TAIL], key)
    return data


def read_parquet(path: str | os.PathLike, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns, or those of the named ones that are there; a `ValueError` of one line says what is wrong.

    Files of other writers have no hash, and maybe no checksums, and are read without.
    """
    try:
        _check_footer(Path(path), key)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=None if columns is None else list(dict.fromkeys(columns)))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{' '.join(str(error).split()):.200}") from None
    return table.replace_schema_metadata()


def _hash(footer: bytes | bytearray, key: str) -> bytes:
    return hashlib.sha256(footer + key.encode()).hexdigest().encode()


def _check_footer(path: Path, key: str) -> None:
    with open(path, "rb") as file:
        if (size := file.seek(0, os.SEEK_END)) < _TAIL:
            raise ValueError(f"{size} bytes")
        file.seek(size - _TAIL)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - _TAIL - length))
        footer = file.read(length)
    before, mark, after = footer.rpartition(_MARK)
    found, rest = after[: len(_BLANK)], after[len(_BLANK) :]
    if mark and found != _hash(before + mark + _BLANK + rest, key):
        raise ValueError("a changed footer, or the file of another stage or tool")
