# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Tables that people write by hand or with other tools: every row is whole, or a line says which is not."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..errors import UserError


MAX_CELL = 1_000_000  # letters; csv's own limit, 131,072, is met by one quote that is never closed


def read_text(path: Path, flag: str) -> str:
    """A text file in UTF-8, with or without the mark that Windows writes."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise UserError(f"{flag}: expected UTF-8 in {path}, found {byte}; save it as UTF-8") from None


def require_unicode(text: str, flag: str, where: str = "") -> str:
    """The text; refuses half of an emoji, as broken JSON has it, which no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{flag}: expected text that can be written as UTF-8{where}, found {text!r:.60}") from None
    return text


def read_csv(path: Path, flag: str, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table with a header; one that is cut short lacks its last columns, one that is longer is refused."""
    text = read_text(path, flag)
    csv.field_size_limit(MAX_CELL)
    options = {"delimiter": delimiter, "strict": True, "skipinitialspace": delimiter == ","}
    rows = csv.reader(io.StringIO(text, newline=""), **options)
    found, header, start = [], None, 1
    try:
        for cells in rows:
            if header is None:
                header = cells
                other = next((mark for mark in ";\t" if len(cells) == 1 and mark in cells[0]), None)
                if other is not None:
                    raise UserError(f"{flag}: expected columns divided by {delimiter!r} in {path}, found {other!r}")
            elif cells:
                if any(cell.strip() for cell in cells[len(header) :]):  # spreadsheets leave empty ones behind
                    wanted = f"expected {len(header)} cell{'s' * (len(header) > 1)} as in the header"
                    found_cells = f"found {len(cells)}; quote texts with {delimiter!r}"
                    raise UserError(f"{flag}: {wanted} in line {start} of {path}, {found_cells}")
                found.append(dict(zip(header, cells)))
            start = rows.line_num + 1
    except csv.Error as error:
        wanted = f"expected quotes around whole cells in line {start} of {path}"
        raise UserError(f"{flag}: {wanted}, found {error} (a quote inside a cell is written twice)") from None
    return found


def read_jsonl(path: Path, flag: str, objects: bool = True) -> list[Any]:
    """The values of a file with one per line, which are to be objects, unless other ones will do."""
    found = []
    for number, line in enumerate(read_text(path, flag).split("\n"), 1):  # JSON itself may hold other ends of lines
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{flag}: expected JSON in line {number} of {path}, found {error.msg}") from None
        if objects and not isinstance(record, dict):
            raise UserError(f"{flag}: expected a JSON object in line {number} of {path}, found {line.strip():.60}")
        found.append(record)
    return found
