# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the cards of datasets and models share."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


ARXIV = "2603.18991"
PAPER = f"https://arxiv.org/abs/{ARXIV}"
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
    cells = ([" ".join(str(cell).replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def link(repo_id: str, kind: str = "") -> str:
    """A repository by its id; `kind` is `datasets/` for a dataset."""
    return f"[`{repo_id}`](https://huggingface.co/{kind}{repo_id})"


def versions_text(record: Mapping[str, Any]) -> str:
    """The libraries of a recorded run in one line."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)


def without_paths(value: Any, paths: Collection[str] | None = None) -> Any:
    """A copy of JSON-like data, for publication: local paths, also of a text NAME=PATH, are cut to their last part.

    `paths` are the record's; by default a relative path is what exists from the current folder.
    """
    if isinstance(value, Mapping):
        return {key: without_paths(part, paths) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(part, paths) for part in value]
    if not isinstance(value, (str, Path)):
        return value
    name, equals, path = str(value).partition("=")
    if isinstance(value, Path) or is_path(value, paths):
        return Path(value).name
    return f"{name}={Path(path).name}" if equals and is_path(path, paths) else value


def is_path(text: str, paths: Collection[str] | None) -> bool:
    """Whether a text names a local path; see `without_paths`."""
    try:
        if text.startswith(("/", "~", "./", "../")):
            return True
        return "/" in text and (Path(text).exists() if paths is None else text in paths)
    except OSError:  # a long text
        return False
