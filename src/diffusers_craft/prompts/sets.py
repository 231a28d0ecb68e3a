# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prompts of a text, JSON, CSV or Parquet file, a dataset of the Hub or the tiny world; the benchmarks of the papers."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import tiny
from ..core.load import load_hub_dataset
from ..core.records import derive_seed
from ..errors import UserError


SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
HPD_STYLES = ("anime", "concept-art", "paintings", "photo")
# Beside prompt and category: what the rules of GenEval and T2I-CompBench read, and what tells HPDv2's repeated prompts apart.
DETAILS = ("metadata", "tag", "include", "exclude", "three_in_one", "seen", "challenge", "index")
COLUMNS = ("prompt", "Prompt", "caption")  # of the prompts, in the sets' own files
CATEGORIES = ("category", "Category", "tag")
GENEVAL_FILE = "evaluation_metadata.jsonl of github.com/djghosh13/geneval, or JSONL with prompt, category and metadata"
COMPBENCH_FILE = (
    "JSONL with prompt, category and, for complex prompts, three_in_one, from github.com/Karine-Huang/T2I-CompBench"
)


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt of a set."""

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
        """The texts."""
        return [row.prompt for row in self.rows]

    @property
    def categories(self) -> list[str | None]:
        """The category of each prompt."""
        return [row.category for row in self.rows]


def _load_hpd(styles: tuple[str, ...]) -> list[dict[str, Any]]:
    from huggingface_hub import hf_hub_download

    rows = []
    for style in styles:
        prompts = _read_rows(hf_hub_download("zhwang/HPDv2", f"benchmark/{style}.json", repo_type="dataset"), COLUMNS)
        category = style if len(styles) > 1 else None
        rows += [{**row, "category": category, "index": index} for index, row in enumerate(prompts)]
    return rows


def _load_dataset(name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    return _read_dataset(datasets.load_dataset(name, split=split), name, COLUMNS, CATEGORIES)


# Name -> (how to load it from the Hub, or what file to bring; how many prompts it has).
SETS: dict[str, tuple[Callable[[], list[dict[str, Any]]] | str, int]] = {
    "hpdv2": (lambda: _load_hpd(HPD_STYLES), 3200),
    "partiprompts": (lambda: _load_dataset("nateraw/parti-prompts", "train"), 1632),
    "pickapic": (lambda: _load_dataset("yuvalkirstain/pickapic_v1_no_images", "validation_unique"), 500),
    "drawbench": (lambda: _load_hpd(("drawbench",)), 200),
    "geneval": (GENEVAL_FILE, 553),
    "t2i_compbench": (COMPBENCH_FILE, 1800),
}
PROMPT_SETS = tuple(SETS)


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
    values = [_check_prompt(row[column], column, source) for row in _read_rows(str(source), [column])]
    prompts = list(dict.fromkeys(filter(None, values)))
    if not prompts:
        raise UserError(f"--prompts: expected at least one prompt in {source}, found none")
    return [prompts[i] for i in _sample(prompts, num_prompts, seed, source)]


def load_prompt_set(source: str, column: str = "prompt", num_prompts: int | None = None, seed: int = 0) -> PromptSet:
    """A benchmark's prompts by name, or those of a file or Hub dataset.

    A benchmark keeps its repeated prompts, whose number is part of its protocol; elsewhere a prompt counts once a
    category.

    Args:
        source (`str`): `hpdv2`, `partiprompts`, `pickapic`, `drawbench` (loaded from the Hub); `NAME=SOURCE` with a
            file or Hub dataset for any benchmark or a name of your own; or such a source alone, see `load_prompts`.
        column (`str`, *optional*, defaults to `"prompt"`): where the prompts stand in sources of your own.
        num_prompts (`int`, *optional*): size of a sample, which keeps the order.
        seed (`int`, *optional*, defaults to 0): of the sample.

    Returns:
        `PromptSet`: at least one prompt.

    Raises:
        UserError: if the source is missing, cannot be read or holds no prompts.
    """
    name, equals, place = source.partition("=")
    if not equals or Path(source).exists():
        name, place = (source, "") if source in SETS else ("", source)
    if place:
        records = _read_rows(place, COLUMNS if name in SETS else [column], (*CATEGORIES, *DETAILS))
    else:
        records = _load_known(name)
    rows = [row for record in records if (row := _row(record, column, source)).prompt]
    if name not in SETS:
        first: dict[tuple, EvaluationPrompt] = {}
        for row in rows:
            first.setdefault((row.prompt, row.category), row)
        rows = list(first.values())
    if not rows:
        raise UserError(f"--prompts: expected at least one prompt in {source}, found none")
    chosen = _sample([row.prompt for row in rows], num_prompts, seed, source)
    return PromptSet(name or Path(place.split(":")[0].rstrip("/")).stem, tuple(rows[i] for i in chosen))


def _load_known(name: str) -> list[dict[str, Any]]:
    """A benchmark's records from the Hub."""
    load, size = SETS[name]
    if isinstance(load, str):
        raise UserError(f"--prompts {name}: expected {name}=FILE with its own file ({load}), found no file")
    try:
        records = load()
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # huggingface_hub's errors are OSErrors
        reason = (str(error).splitlines() or [""])[0][:160]
        raise UserError(
            f"--prompts {name}: expected its prompts on the Hub or in the cache, found {type(error).__name__}"
            f" ({reason}); a local file works too: {name}=FILE"
        ) from None
    if len(records) != size:
        raise UserError(f"--prompts {name}: expected {size} prompts from the Hub, found {len(records)}")
    return records


def _row(record: Mapping[str, Any], column: str, source: str) -> EvaluationPrompt:
    prompt = next((record[name] for name in (column, *COLUMNS) if name in record), None)
    category = next((record[name] for name in CATEGORIES if record.get(name)), None)
    if source in tiny.PROMPTS and prompt:  # the embedded lists are text files; a caption tells its task
        from ..tiny.world import parse_caption

        category = parse_caption(prompt).task
    details = {name: record[name] for name in DETAILS if record.get(name) is not None}
    return EvaluationPrompt(_check_prompt(prompt, column, source), str(category) if category else None, details)


def _check_prompt(value: Any, column: str, source: str | os.PathLike) -> str:
    """A prompt without surrounding space, `""` for none; refuses what is no text."""
    if not isinstance(value, str | None):
        raise UserError(f"--prompt_column: expected text in column {column!r} of {source}, found {value!r:.60}")
    return (value or "").strip()


def _sample(prompts: Sequence[str], num_prompts: int | None, seed: int, source: str | os.PathLike) -> Sequence[int]:
    """Positions of all prompts, or of `num_prompts` of them; a larger sample contains the smaller one."""
    if num_prompts is None:
        return range(len(prompts))
    if not 1 <= num_prompts <= len(prompts):
        raise UserError(
            f"--num_prompts: expected 1 to {len(prompts)} (distinct prompts in {source}), found {num_prompts}"
        )
    ranks, repeats = [], Counter()
    for prompt in prompts:  # the first of repeated prompts draws by its text alone, as if it were the only one
        ranks.append(derive_seed(seed, "prompt", prompt, *filter(None, [repeats[prompt]])))
        repeats[prompt] += 1
    return sorted(sorted(range(len(prompts)), key=ranks.__getitem__)[:num_prompts])


def _read_rows(source: str, columns: Sequence[str], extras: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a source: the first of the prompts' `columns` that it has, and those of the `extras`.

    Text lines and bare strings get the first name. A `.tsv` is read without quoting, as PartiPrompts' own is written.
    """
    path = Path(tiny.prompt_file(source) or source).expanduser()
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
    return _read_dataset(load_hub_dataset(name, split or "train", expected=expected), name, columns, extras)


def _read_dataset(dataset: Any, name: str, columns: Sequence[str], extras: Collection[str]) -> list[dict[str, Any]]:
    """`_read_rows` of a loaded dataset."""
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
        records = _parse_json(text, path)
    if all(isinstance(record, str) for record in records):
        return [{columns[0]: record} for record in records]
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"--prompts: expected JSON objects with a column {columns[0]!r} in {path}, found other values")
    # Cells beyond a CSV's header stand under the name None.
    names = list(dict.fromkeys(name for record in records for name in record if name is not None))
    wanted = _choose(names, columns, extras, path)
    return [{name: record.get(name) for name in wanted} for record in records]


def _parse_json(text: str, path: Path) -> list[Any]:
    """The values of a JSON list, or of the lines of a `.jsonl`."""
    if path.suffix.lower() == ".json":
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--prompts: expected JSON in {path}, found {error.msg} in line {error.lineno}") from None
        if not isinstance(records, list):
            raise UserError(f"--prompts: expected a JSON list in {path}, found {type(records).__name__}")
        return records
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            records += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(f"--prompts: expected JSON in line {number} of {path}, found {error.msg}") from None
    return records


def _choose(names: Sequence[str], columns: Sequence[str], extras: Collection[str], source: str | Path) -> list[str]:
    """Of the names that a source has: the first of the wanted columns, and the extras."""
    found = next((column for column in columns if column in names), None)
    if found is None:
        raise UserError(f"--prompt_column: expected a column of {source} ({', '.join(names)}), found {columns[-1]!r}")
    return list(dict.fromkeys([found, *(name for name in extras if name in names)]))
