# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prompt sets for an evaluation: the benchmarks of the papers, from the Hub or a local file, with their categories."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tiny import PROMPTS
from .sources import check_prompt, read_dataset, read_rows, sample_prompts


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
        prompts = read_rows(hf_hub_download("zhwang/HPDv2", f"benchmark/{style}.json", repo_type="dataset"), COLUMNS)
        rows += [{**row, "category": style, "index": index} for index, row in enumerate(prompts)]
    return rows if len(styles) > 1 else [{**row, "category": None} for row in rows]


def _load_dataset(name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    return read_dataset(datasets.load_dataset(name, split=split), name, COLUMNS, CATEGORIES)


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
        columns = COLUMNS if name in SETS else [column]
        records = read_rows(place, columns, (*CATEGORIES, *DETAILS))
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
    seen: dict[str, int] = {}
    identities: list[str | tuple] = []
    for row in rows:  # the first of repeated prompts is known by its text alone, as in `load_prompts`
        number = seen[row.prompt] = seen.get(row.prompt, -1) + 1
        identities.append((row.prompt, number) if number else row.prompt)
    chosen = set(sample_prompts(identities, num_prompts, seed, source))
    title = name or Path(place.split(":")[0].rstrip("/")).stem
    return PromptSet(title, tuple(row for row, identity in zip(rows, identities) if identity in chosen))


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
    if source in PROMPTS and prompt:  # the embedded lists are text files; a caption tells its task
        from ..tiny.world import parse_caption

        category = parse_caption(prompt).task
    details = {name: record[name] for name in DETAILS if record.get(name) is not None}
    return EvaluationPrompt(check_prompt(prompt, column, source), str(category) if category else None, details)
