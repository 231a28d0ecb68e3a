# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Captions of images, from the tables that stand in their folders or are named."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.files import is_hidden
from ..core.tables import read_csv, read_jsonl, require_unicode
from ..errors import UserError


METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an image folder as `datasets` defines it
CAPTION_COLUMNS = ("prompt", "caption", "text")  # tried in this order


def read_schema(path: Path) -> pa.Schema:
    """The columns of a Parquet file."""
    try:
        return pq.read_schema(path)
    except pa.ArrowInvalid:
        raise UserError(f"--images: expected a Parquet file, found other bytes in {path}") from None


def pick_caption_column(columns: Iterable[str], asked: str | None, place: str) -> str:
    """The column that was asked for, or the first of `CAPTION_COLUMNS`; `place` is for error texts."""
    found = ", ".join(columns := list(columns))
    if asked is not None and asked not in columns:
        raise UserError(f"--caption_column: expected one of the columns of {place} ({found}), found {asked!r}")
    name = asked or next((name for name in CAPTION_COLUMNS if name in columns), None)
    if name is None:
        wanted = f"expected the column of {place} with the captions ({found})"
        missing = f"found none named {', '.join(CAPTION_COLUMNS)}; name it, or give one --prompt"
        raise UserError(f"--caption_column: {wanted}, {missing}")
    return name


def check_caption(value: Any, label: str) -> str:
    """The caption; refuses what is no text, or none that a file takes."""
    if not isinstance(value, str):
        raise UserError(f"--images: expected a text as the caption of {label}, found {value!r:.60}")
    return require_unicode(value, "--images", f" as the caption of {label}")


def folder_captions(folder: Path, column: str | None) -> tuple[dict[str, str], str] | None:
    """Name below the folder to caption, out of its tables of captions, and the first of these; `None` without one."""
    if not (tables := _metadata_files(folder)):
        return None
    found: dict[str, str] = {}
    for path in tables:
        inside = path.parent.relative_to(folder)
        found |= {(inside / name).as_posix(): text for name, text in read_captions(path, column).items()}
    return found, str(tables[0])


def _metadata_files(folder: Path) -> list[Path]:
    """A folder's own table of captions, and those of the folders below; other tables may have the name there."""
    found = [path for name in METADATA_FILES for path in sorted(folder.rglob(name)) if not is_hidden(path, folder)]
    return [path for path in found if path.parent == folder or _names_files(path)]


def _names_files(path: Path) -> bool:
    """Whether a table has the column of an image folder; other programs' tables may be of any form."""
    if path.suffix == ".parquet":
        return "file_name" in read_schema(path).names
    with open(path, "rb") as file:
        return b"file_name" in file.readline()


def read_captions(path: Path, column: str | None = None) -> dict[str, str]:
    """`file_name` to caption from a `.csv`, `.jsonl` or `.parquet` file; refuses others, and rows that lack a column."""
    if path.suffix not in _READERS or not path.is_file():
        raise UserError(f"--captions: expected a .csv, .jsonl or .parquet file, found {str(path)!r}")
    records = _READERS[path.suffix](path)
    if not records or "file_name" not in records[0]:
        raise UserError(f"--captions: expected a column file_name in {path}, found none")
    column = pick_caption_column((name for name in records[0] if name != "file_name"), column, str(path))
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("file_name"), str):
            raise UserError(f"--captions: expected a file_name in row {number} of {path}, found none")
    return {record["file_name"]: check_caption(record.get(column), record["file_name"]) for record in records}


def _read_table(path: Path) -> list[dict[str, Any]]:
    read_schema(path)
    return pq.read_table(path).to_pylist()


_READERS = {
    ".csv": partial(read_csv, flag="--captions"),
    ".jsonl": partial(read_jsonl, flag="--captions"),
    ".parquet": _read_table,
}
