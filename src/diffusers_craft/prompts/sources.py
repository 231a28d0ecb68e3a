# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Loads prompts from a text, JSON, CSV or Parquet file, a dataset of the Hub, or the embedded tiny world."""

import csv
import io
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..core.load import load_hub_dataset
from ..core.records import derive_seed
from ..errors import UserError


SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


def load_prompts(
    source: str | os.PathLike, column: str = "prompt", num_prompts: int | None = None, seed: int = 0
) -> list[str]:
    """Distinct prompts in the order of their first appearance, stripped, without empty ones.

    Args:
        source (`str` or `os.PathLike`): a file (`.txt` with one prompt per line, `.jsonl`, `.json` with a list, `.csv`,
            `.tsv`, `.parquet`), a dataset of the Hub as `name` or `name:split` (default split `train`) or a local folder of
            one, or `tiny-train` / `tiny-heldout`.
        column (`str`, *optional*, defaults to `"prompt"`): where the prompts stand; text lines have none.
        num_prompts (`int`, *optional*): size of a sample, which keeps the order. A larger sample with the same seed
            contains the smaller one.
        seed (`int`, *optional*, defaults to `0`): of the sample.

    Returns:
        `list[str]`: at least one prompt.

    Raises:
        UserError: if the source is missing, cannot be read, lacks the column or holds too few prompts.
    """
    values = [check_prompt(row[column], column, source) for row in read_rows(str(source), [column])]
    prompts = list(dict.fromkeys(filter(None, values)))
    if not prompts:
        raise UserError(f"--prompts: expected at least one prompt in {source}, found none")
    chosen = set(sample_prompts(prompts, num_prompts, seed, source))
    return [prompt for prompt in prompts if prompt in chosen]


def check_prompt(value: Any, column: str, source: str | os.PathLike) -> str:
    """A prompt without surrounding space, `""` for none; refuses what is no text."""
    if not isinstance(value, str | None):
        raise UserError(f"--prompt_column: expected text in column {column!r} of {source}, found {value!r:.60}")
    return (value or "").strip()


def sample_prompts(
    prompts: Sequence[str | tuple], num_prompts: int | None, seed: int, source: str | os.PathLike
) -> Sequence[str | tuple]:
    """All of the distinct prompts, or `num_prompts` of them; a larger sample contains the smaller one."""
    if num_prompts is None:
        return prompts
    if not 1 <= num_prompts <= len(prompts):
        raise UserError(
            f"--num_prompts: expected 1 to {len(prompts)} (distinct prompts in {source}), found {num_prompts}"
        )
    ranked = sorted(prompts, key=lambda p: derive_seed(seed, "prompt", *([p] if isinstance(p, str) else p)))
    return ranked[:num_prompts]


def read_rows(source: str, columns: Sequence[str], extras: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a source (see `load_prompts`): the first of the prompts' `columns` that it has, and those of the `extras`.

    Text lines and bare strings have no column and get the first name. A `.tsv` is read without quoting, as PartiPrompts'
    own is written.
    """
    from ..tiny import prompt_file

    path = Path(prompt_file(source) or source).expanduser()
    suffix = path.suffix.lower()
    if path.is_file() and suffix in SUFFIXES:
        return _read_parquet(path, columns, extras) if suffix == ".parquet" else _read_text(path, columns, extras)
    name, split = (source, "train") if path.is_dir() or ":" not in source else source.rsplit(":", 1)
    folder = Path(name).expanduser()
    expected = f"--prompts: expected a file ({', '.join(SUFFIXES)}) or a dataset of the Hub"
    if path.is_file():
        raise UserError(f"{expected}, found the file {source}")
    if not folder.is_dir() and (suffix in SUFFIXES or source.startswith((".", "/", "~"))):
        raise UserError(f"{expected}, found no file at {source}")
    name = str(folder) if folder.is_dir() else name
    return read_dataset(load_hub_dataset(name, split or "train", expected=expected), name, columns, extras)


def read_dataset(dataset: Any, name: str, columns: Sequence[str], extras: Collection[str]) -> list[dict[str, Any]]:
    """`read_rows` of a loaded dataset."""
    return dataset.select_columns(_choose(dataset.column_names, columns, extras, name)).to_list()


def _read_parquet(path: Path, columns: Sequence[str], extras: Collection[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid:
        raise UserError(f"--prompts: expected a Parquet file, found other bytes in {path}") from None
    return file.read(columns=_choose(file.schema_arrow.names, columns, extras, path)).to_pylist()


def _read_text(path: Path, columns: Sequence[str], extras: Collection[str]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--prompts: expected UTF-8 text in {path}, found other bytes") from None
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
        records = list(csv.DictReader(io.StringIO(text), **style))
    elif suffix == ".txt":
        records = text.split("\n")
    else:
        records = (_parse_json_lines if suffix == ".jsonl" else _parse_json)(text, path)
    if all(isinstance(record, str) for record in records):
        return [{columns[0]: record} for record in records]
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"--prompts: expected JSON objects with a column {columns[0]!r} in {path}, found other values")
    # Cells beyond a CSV's header stand under the name None.
    names = list(dict.fromkeys(name for record in records for name in record if name is not None))
    wanted = _choose(names, columns, extras, path)
    return [{name: record.get(name) for name in wanted} for record in records]


def _parse_json_lines(text: str, path: Path) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"--prompts: expected JSON in line {number} of {path}, found {error.msg}") from None
    return records


def _parse_json(text: str, path: Path) -> list[Any]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--prompts: expected JSON in {path}, found {error.msg} in line {error.lineno}") from None
    if not isinstance(records, list):
        raise UserError(f"--prompts: expected a JSON list in {path}, found {type(records).__name__}")
    return records


def _choose(names: Sequence[str], columns: Sequence[str], extras: Collection[str], source: str | Path) -> list[str]:
    """Of the names that a source has: the first of the wanted columns, and the extras."""
    found = next((column for column in columns if column in names), None)
    if found is None:
        raise UserError(f"--prompt_column: expected a column of {source} ({', '.join(names)}), found {columns[-1]!r}")
    return list(dict.fromkeys([found, *(name for name in extras if name in names)]))
