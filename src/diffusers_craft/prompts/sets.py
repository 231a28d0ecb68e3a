# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prompts of a text, JSON, CSV or Parquet file, a dataset of the Hub or the tiny world; the benchmarks of the papers."""

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .. import tiny
from ..core.load import HubSource, hub_reason, read_hub_columns
from ..core.records import derive_seed
from ..core.tables import read_csv, read_jsonl, read_text, require_unicode
from ..errors import UserError
from .compbench import read_compbench


logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
# Beside prompt and category: what the rules of GenEval and T2I-CompBench read.
DETAILS = ("metadata", "tag", "include", "exclude", "three_in_one", "seen", "challenge", "index")
COLUMNS = ("prompt", "Prompt", "caption")  # of the prompts, in the sets' own files
CATEGORIES = ("category", "Category", "tag")
# The benchmarks: files of zhwang/HPDv2, other datasets of the Hub with their splits, how many prompts these have, and what
# file to bring where the Hub has none.
HPD_FILES = {"hpdv2": ("anime", "concept-art", "paintings", "photo"), "drawbench": ("drawbench",)}
HUB_SETS = {"partiprompts": HubSource("nateraw/parti-prompts", None, "train")}
HUB_SETS |= {"pickapic": HubSource("yuvalkirstain/pickapic_v1_no_images", None, "validation_unique")}
SIZES = {"hpdv2": 3200, "partiprompts": 1632, "pickapic": 500, "drawbench": 200}
OWN_FILES = {
    "geneval": "evaluation_metadata.jsonl of github.com/djghosh13/geneval, or JSONL with prompt, category and metadata",
    "t2i_compbench": "examples/dataset of github.com/Karine-Huang/T2I-CompBench or one of its files such as color_val.txt, or"
    " JSONL with prompt, category and, for complex prompts, three_in_one",
}
PROMPT_SETS = (*SIZES, *OWN_FILES)


@dataclass(frozen=True)
class EvaluationPrompt:
    prompt: str
    category: str | None = None  # style, challenge or task, by which results are also reported
    details: Mapping[str, Any] = field(default_factory=dict)  # e.g. GenEval's `include` and `exclude`


@dataclass(frozen=True)
class PromptSet:
    """A name and n prompts in a fixed order."""

    name: str
    rows: tuple[EvaluationPrompt, ...]

    @property
    def prompts(self) -> list[str]:
        return [row.prompt for row in self.rows]

    @property
    def categories(self) -> list[str | None]:
        return [row.category for row in self.rows]


def load_prompts(
    source: str | os.PathLike, column: str = "prompt", num_prompts: int | None = None, seed: int = 0
) -> list[str]:
    """Distinct prompts in the order of their first appearance, stripped, without empty ones.

    Args:
        source (`str` or `os.PathLike`): a file (`.txt` with one prompt per line, `.jsonl`, `.json` with a list, `.csv`,
            `.tsv`, `.parquet`), a dataset of the Hub as `name`, `name:split` or `name:config:split` (default split
            `train`) or a local folder of one, or `tiny-train` / `tiny-heldout`.
        column (`str`, *optional*, defaults to `"prompt"`): where the prompts stand; text lines have none.
        num_prompts (`int`, *optional*): size of a sample, which keeps the order. A larger sample with the same seed
            contains the smaller one.
        seed (`int`, *optional*, defaults to `0`): of the sample.

    Raises:
        UserError: if the source is missing, cannot be read, lacks the column or holds too few prompts.
    """
    return load_build_prompts(source, column, num_prompts, seed).prompts


def load_build_prompts(
    source: str | os.PathLike, column: str = "prompt", num_prompts: int | None = None, seed: int = 0
) -> PromptSet:
    """The prompts of `load_prompts` with the categories, if any, of their first appearance in the source."""
    first: dict[str, EvaluationPrompt] = {}
    for row in _rows(_read_rows(str(source), [column], CATEGORIES), column, str(source)):
        first.setdefault(row.prompt, row)
    chosen = _sample(list(first), num_prompts, seed, source)
    rows = list(first.values())
    return PromptSet(str(source), tuple(rows[i] for i in chosen))


def distinct_prompts(prompts: Iterable[str]) -> list[str]:
    """A caller's prompts as `load_prompts` would give them: stripped, without empty and repeated ones."""
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise UserError(f"prompts: expected a list of texts, found {prompts!r:.60}")
    prompts = list(prompts)
    if any(prompt is None for prompt in prompts):  # which a file may have in a row of other columns
        raise UserError("prompts: expected text, found None")
    return list(dict.fromkeys(filter(None, map(_check_prompt, prompts))))


def load_prompt_set(source: str, column: str = "prompt", num_prompts: int | None = None, seed: int = 0) -> PromptSet:
    """A benchmark's prompts by name, or those of a file or Hub dataset.

    A benchmark keeps its repeated prompts, a part of its protocol; elsewhere a prompt counts once per category.

    Args:
        source (`str`): `hpdv2`, `partiprompts`, `pickapic`, `drawbench` (loaded from the Hub); `NAME=SOURCE` with a
            file or Hub dataset for any benchmark or a name of your own, for `t2i_compbench` also the folder of its own
            files; or such a source alone, see `load_prompts`.
        column, num_prompts, seed: as in `load_prompts`; the column is that of sources of your own.

    Raises:
        UserError: if the source is missing, cannot be read or holds no prompts.
    """
    name, equals, place = source.partition("=")
    if not equals or Path(source).exists():
        name, place = (source, "") if source in PROMPT_SETS else ("", source)
    if place:
        records = read_compbench(place) if name == "t2i_compbench" else None
        if records is None:
            records = _read_rows(place, COLUMNS if name in PROMPT_SETS else [column], (*CATEGORIES, *DETAILS))
    else:
        records = _load_known(name)
    rows = _rows(records, column, source)
    if source in tiny.PROMPTS:  # the embedded lists are text files; a caption tells its task
        from ..tiny.world import parse_caption

        rows = [replace(row, category=parse_caption(row.prompt).task) for row in rows]
    if name not in PROMPT_SETS:
        first: dict[tuple, EvaluationPrompt] = {}
        for row in rows:
            first.setdefault((row.prompt, row.category), row)
        rows = list(first.values())
    chosen = _sample([row.prompt for row in rows], num_prompts, seed, source)
    return PromptSet(name or Path(place.split(":")[0].rstrip("/")).stem, tuple(rows[i] for i in chosen))


def _load_known(name: str) -> list[dict[str, Any]]:
    """A benchmark's records from the Hub."""
    if name in OWN_FILES:
        raise UserError(f"--prompts {name}: expected {name}=FILE with its own file ({OWN_FILES[name]}), found no file")
    from huggingface_hub import hf_hub_download

    records = []
    wanted = f"--prompts {name}: expected its prompts on the Hub or in the cache"
    try:
        for style in HPD_FILES.get(name, ()):
            file = hf_hub_download("zhwang/HPDv2", f"benchmark/{style}.json", repo_type="dataset")
            category = style if name == "hpdv2" else None
            rows = enumerate(_read_rows(file, COLUMNS))
            records += [{**row, "category": category, "index": index} for index, row in rows]
        if name in HUB_SETS:
            choose = partial(_choose, columns=COLUMNS, extras=CATEGORIES, source=HUB_SETS[name].name)
            records = read_hub_columns(HUB_SETS[name], choose, f"{wanted}; a local file works too: {name}=FILE")
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # huggingface_hub's errors are OSErrors
        reason = shorten((str(error).splitlines() or [""])[0], 160, placeholder=" …")
        found = hub_reason(error) or f"{type(error).__name__} ({reason})"
        raise UserError(f"{wanted}, found {found}; a local file works too: {name}=FILE") from None
    if len(records) != SIZES[name]:
        raise UserError(f"--prompts {name}: expected {SIZES[name]} prompts from the Hub, found {len(records)}")
    return records


def _rows(records: Sequence[Mapping[str, Any]], column: str, source: str) -> list[EvaluationPrompt]:
    """Those of the records that have a prompt, of which there must be one; says how many have none."""
    rows = [row for record in records if (row := _row(record, column, source)).prompt]
    if not rows:
        raise UserError(f"--prompts: expected at least one prompt in {source}, found none")
    if empty := len(records) - len(rows):
        logger.warning("--prompts: %d of %d rows of %s have no prompt and are left out", empty, len(records), source)
    return rows


def _row(record: Mapping[str, Any], column: str, source: str) -> EvaluationPrompt:
    prompt = next((record[name] for name in (column, *COLUMNS) if name in record), None)
    category = next((record[name] for name in CATEGORIES if record.get(name)), None)
    details = {name: record[name] for name in DETAILS if record.get(name) is not None}
    text = _check_prompt(prompt, "--prompt_column", f" in column {column!r} of {source}")
    category = require_unicode(str(category), "--prompts", f" as a category in {source}") if category else None
    return EvaluationPrompt(text, category, details)


def _check_prompt(value: Any, flag: str = "prompts", where: str = "") -> str:
    """A prompt without surrounding space, `""` for none; refuses what is no text."""
    if not isinstance(value, str | None):
        raise UserError(f"{flag}: expected text{where}, found {value!r:.60}")
    return require_unicode(value or "", flag, where).strip()


def _sample(prompts: Sequence[str], num_prompts: int | None, seed: int, source: str | os.PathLike) -> Sequence[int]:
    """Positions of all prompts, or of `num_prompts` of them; a larger sample contains the smaller one."""
    if num_prompts is None:
        return range(len(prompts))
    if not 1 <= num_prompts <= len(prompts):
        expected = f"expected 1 to {len(prompts)} (distinct prompts in {source})"
        raise UserError(f"--num_prompts: {expected}, found {num_prompts}")
    ranks, repeats = [], Counter()
    for prompt in prompts:  # the first of repeated prompts draws by its text alone, as if it were the only one
        number = [repeats[prompt]] if prompt in repeats else []
        ranks.append(derive_seed(seed, "prompt", prompt, *number))
        repeats[prompt] += 1
    return sorted(sorted(range(len(prompts)), key=ranks.__getitem__)[:num_prompts])


def _read_rows(source: str, columns: Sequence[str], extras: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a source: the first of the prompts' `columns` that it has, and those of the `extras`.

    Text lines and bare strings get the first name.
    """
    path = Path(tiny.prompt_file(source) or source).expanduser()
    suffix = path.suffix.lower()
    if path.is_file() and suffix in SUFFIXES:
        return _read_file(path, columns, extras)
    place = HubSource.parse(source)
    expected = f"--prompts: expected a file ({', '.join(SUFFIXES)}) or a dataset of the Hub"
    if path.is_file():
        raise UserError(f"{expected}, found the file {source}")
    if not Path(place.name).is_dir() and (suffix in SUFFIXES or source.startswith((".", "/", "~"))):
        raise UserError(f"{expected}, found no file at {source}")
    return read_hub_columns(place, partial(_choose, columns=columns, extras=extras, source=place.name), expected)


def _read_file(path: Path, columns: Sequence[str], extras: Collection[str]) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            names = pq.read_schema(path).names
        except pa.ArrowInvalid:
            raise UserError(f"--prompts: expected a Parquet file, found other bytes in {path}") from None
        return pq.read_table(path, columns=_choose(names, columns, extras, path)).to_pylist()
    if suffix == ".csv":
        records: list[Any] = read_csv(path, "--prompts")
    elif suffix == ".tsv":
        records = _read_tsv(path)
    elif suffix == ".txt":
        records = [line for line in read_text(path, "--prompts").split("\n") if line.strip()]
    else:
        records = read_jsonl(path, "--prompts", objects=False) if suffix == ".jsonl" else _read_json(path)
    if all(isinstance(record, str) for record in records):
        return [{columns[0]: record} for record in records]
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"--prompts: expected JSON objects with a column {columns[0]!r} in {path}, found other values")
    names = list(dict.fromkeys(name for record in records for name in record))
    wanted = _choose(names, columns, extras, path)
    return [{name: record.get(name) for name in wanted} for record in records]


def _read_tsv(path: Path) -> list[dict[str, str]]:
    """With quotes around cells as spreadsheets and pandas write them; without, as PartiPrompts' own, where that fails."""
    try:
        return read_csv(path, "--prompts", "\t")
    except UserError:
        text = io.StringIO(read_text(path, "--prompts"))
        rows = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE, restkey="more"))
        if any(cell.strip() for row in rows for cell in row.get("more", ())):
            raise
        return rows


def _read_json(path: Path) -> list[Any]:
    """The values of a JSON list."""
    try:
        values = json.loads(read_text(path, "--prompts"))
    except json.JSONDecodeError as error:
        raise UserError(f"--prompts: expected JSON in {path}, found {error.msg} in line {error.lineno}") from None
    if not isinstance(values, list):
        raise UserError(f"--prompts: expected a JSON list in {path}, found {type(values).__name__}")
    return values


def _choose(names: Sequence[str], columns: Sequence[str], extras: Collection[str], source: str | Path) -> list[str]:
    """Of the names that a source has: the first of the wanted columns, and the extras."""
    found = next((column for column in columns if column in names), None)
    if found is None:
        raise UserError(f"--prompt_column: expected a column of {source} ({', '.join(names)}), found {columns[-1]!r}")
    return list(dict.fromkeys([found, *(name for name in extras if name in names)]))
