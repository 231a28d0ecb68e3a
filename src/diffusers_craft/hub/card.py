# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the cards of datasets and models share."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


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


class License(NamedTuple):
    """What a card states: the Hub's identifiers, and of `other` which licence that is."""

    ids: tuple[str, ...]
    name: str | None = None
    link: str | None = None

    @classmethod
    def stated(cls, data: Mapping[str, Any], repo_id: str | None = None) -> "License | None":
        """That of a card's metadata; `repo_id` is the card's, in which a link may name a file."""
        found = data.get("license") or []
        ids = tuple(map(str, found if isinstance(found, list) else [found]))
        name, link = (str(data[key]) if data.get(key) else None for key in ("license_name", "license_link"))
        if link and "://" not in link:
            link = f"https://huggingface.co/{repo_id}/blob/main/{link.removeprefix('./')}" if repo_id else None
        return cls(ids, name, link) if ids else None

    @property
    def metadata(self) -> dict[str, Any]:
        """The same for another card."""
        own = {"license": self.ids[0] if len(self.ids) == 1 else list(self.ids)}
        return own | {key: value for key, value in zip(("license_name", "license_link"), self[1:]) if value}

    def __str__(self) -> str:
        about = ", ".join(filter(None, self[1:]))
        return ", ".join(self.ids) + (f" ({about})" if about else "")


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
