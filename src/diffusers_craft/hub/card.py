# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the cards of datasets and models share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


PAPER = "https://arxiv.org/abs/2603.18991"
CITATION = """```bibtex
@article{craft2026,
  title   = {CRAFT: Aligning Diffusion Models with Fine-Tuning Is Easier Than You Think},
  author  = {Sun, Zening and Xie, Zhengpeng and Bai, Lichen and Shao, Shitong and Yang, Shuo and Xie, Zeke},
  journal = {arXiv preprint arXiv:2603.18991},
  year    = {2026}
}
```"""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown; texts may hold anything."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def link(repo_id: str, kind: str = "") -> str:
    """A repository by its id; `kind` is `datasets/` for a dataset."""
    return f"[`{repo_id}`](https://huggingface.co/{kind}{repo_id})"


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def without_paths(value: Any) -> Any:
    """A copy of JSON-like data whose local paths are cut to their last part, for publication."""
    if isinstance(value, Mapping):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(part) for part in value]
    if isinstance(value, Path) or (isinstance(value, str) and _is_path(value)):
        return Path(value).name
    return value


def _is_path(text: str) -> bool:
    try:
        return text.startswith(("/", "~", "./", "../")) or ("/" in text and Path(text).exists())
    except OSError:  # a long text
        return False
