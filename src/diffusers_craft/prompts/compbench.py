# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""T2I-CompBench's own files: one text file a category and split, whose name says how its prompts are judged."""

import re
from pathlib import Path
from typing import Any

from ..core.tables import read_text
from ..errors import UserError


CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "complex")
LABELS = ("spatial", "action", "spatialaction")  # of complex prompts: `three_in_one`
_NAME = re.compile(
    rf"(?P<category>{'|'.join(CATEGORIES)})(_(train|val))?(_(seen|unseen|(?P<label>{'|'.join(LABELS)})))?\.txt"
)


def read_compbench(source: str) -> list[dict[str, Any]] | None:
    """The prompts of one of the files or of their folder; `None` for a source of another kind.

    Of a folder the validation prompts are taken, on which methods are compared.
    """
    path = Path(source).expanduser()
    if path.is_dir() and any(path.glob("*.txt")):
        if not (files := _validation_files(path)):
            wanted = ", ".join(f"{category}_val.txt" for category in CATEGORIES)
            raise UserError(f"--prompts t2i_compbench: expected {wanted} in {path}, found none of them")
        return [row for file in files for row in _rows(file)]
    return _rows(path) if path.is_file() and path.suffix == ".txt" else None


def _validation_files(folder: Path) -> list[Path]:
    """A file a category; for complex prompts those that hold them by label, if they are there."""
    names = [f"{category}_val.txt" for category in CATEGORIES]
    labelled = [name for name in (f"complex_val_{label}.txt" for label in LABELS) if (folder / name).is_file()]
    names[-1:] = labelled or names[-1:]
    return [folder / name for name in names if (folder / name).is_file()]


def _rows(path: Path) -> list[dict[str, Any]]:
    if not (name := _NAME.fullmatch(path.name)) or (name["label"] and name["category"] != "complex"):
        wanted = f"expected a file named as T2I-CompBench's own, CATEGORY_val.txt with one of {', '.join(CATEGORIES)}"
        raise UserError(f"--prompts t2i_compbench: {wanted}, or JSONL with a column category, found {path}")
    labels = {"category": name["category"], "three_in_one": name["label"]}
    lines = read_text(path, "--prompts").split("\n")
    return [{"prompt": line, **labels} for line in lines if line.strip()]
