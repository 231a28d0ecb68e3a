# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Loads prompts from a text, JSON, CSV or Parquet file, a dataset of the Hub, or the embedded tiny world."""

import csv
import io
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..core.records import derive_seed
from ..errors import UserError


SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


def load_prompts(
    source: str | os.PathLike, column: str = "prompt", num_prompts: int | None = None, seed: int = 0
) -> list[str]:
    """Distinct prompts in the order of their first appearance, stripped, without empty ones.

    Args:
        source (`str` or `os.PathLike`): a file (`.txt` with a prompt a line, `.jsonl`, `.json` with a list, `.csv`,
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
    values = [check_prompt(row[column], column, source) for row in read_rows(str(source), column)]
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
    return sorted(prompts, key=lambda p: derive_seed(seed, "prompt", *([p] if isinstance(p, str) else p)))[
        :num_prompts
    ]


def read_rows(source: str, column: str, extras: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a source: the column of the prompts, and those of the `extras` that it has.

    Args:
        source (`str`): see `load_prompts`; a `.tsv` is read without quoting, as PartiPrompts' own is written.
        column (`str`): where the prompts stand; text lines have none.
        extras (`Collection[str]`, *optional*): further columns.

    Raises:
        UserError: if the source is missing, cannot be read or lacks the column.
    """
    from ..tiny import prompt_file

    path = Path(prompt_file(source) or source).expanduser()
    suffix = path.suffix.lower()
    if path.is_file() and suffix in SUFFIXES:
        return _read_file(path, suffix, column, extras)
    name, split = (source, "") if path.is_dir() or ":" not in source else source.rsplit(":", 1)
    folder = Path(name).expanduser()
    if path.is_file() or not folder.is_dir() and (suffix in SUFFIXES or source.startswith((".", "/", "~"))):
        found = f"the file {source}" if path.is_file() else f"no file at {source}"
        raise UserError(f"--prompts: expected a file ({', '.join(SUFFIXES)}) or a dataset of the Hub, found {found}")
    return _read_dataset(str(folder) if folder.is_dir() else name, split or "train", column, extras)


def _read_file(path: Path, suffix: str, column: str, extras: Collection[str]) -> list[dict[str, Any]]:
    if suffix == ".parquet":
        return _read_parquet(path, column, extras)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--prompts: expected UTF-8 text in {path}, found other bytes") from None
    if suffix == ".txt":
        return [{column: line} for line in text.split("\n")]
    if suffix in (".csv", ".tsv"):
        style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
        rows = csv.DictReader(io.StringIO(text), **style)
        return _pick(list(rows), rows.fieldnames or [], column, extras, path)
    records = _parse_json_lines(text, path) if suffix == ".jsonl" else _parse_json(text, path)
    if records and all(isinstance(record, str) for record in records):
        return [{column: record} for record in records]
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"--prompts: expected JSON objects with a column {column!r} in {path}, found other values")
    names = list(dict.fromkeys(name for record in records for name in record))
    return _pick(records, names, column, extras, path)


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


def _read_parquet(path: Path, column: str, extras: Collection[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid:
        raise UserError(f"--prompts: expected a Parquet file, found other bytes in {path}") from None
    names = file.schema_arrow.names
    _require(column, names, path)
    return file.read(columns=[column, *(name for name in extras if name in names)]).to_pylist()


def _read_dataset(name: str, split: str, column: str, extras: Collection[str]) -> list[dict[str, Any]]:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--prompts: expected a file ({', '.join(SUFFIXES)}) or a dataset of the Hub, found {name!r}: {reason}"
        ) from None
    _require(column, dataset.column_names, name)
    wanted = [column, *(extra for extra in extras if extra in dataset.column_names)]
    return dataset.select_columns(wanted).to_list()


def _pick(
    records: list[dict[str, Any]], names: Sequence[str], column: str, extras: Collection[str], path: Path
) -> list[dict[str, Any]]:
    if records:
        _require(column, names, path)
    wanted = [column, *(extra for extra in extras if extra in names)]
    return [{name: record.get(name) for name in wanted} for record in records]


def _require(column: str, names: Sequence[str], source: str | Path) -> None:
    if column not in names:
        raise UserError(f"--prompt_column: expected a column of {source} ({', '.join(names)}), found {column!r}")
