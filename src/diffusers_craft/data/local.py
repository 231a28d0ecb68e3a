# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Datasets in local folders and files, every row of them.

`datasets` guesses the kind of a folder from the majority of its files, and splits from their names: `a train.png` or
`retrain.parquet` would leave all other files out. Here a folder is what its files say, and what is left out is counted.
"""

import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, load_dataset, load_from_disk
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..core.files import is_hidden


logger = logging.getLogger(__name__)

CAPTION_SUFFIXES = (".txt", ".caption")  # kohya's captions beside the pictures
_IMAGES, _METADATA = tuple(ImageFolder.EXTENSIONS), ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_UNREAD = (".heic", ".heif", ".avif", ".jxl", ".cr2", ".nef", ".dng")  # pictures that Pillow does not open by itself
# As `datasets` and the Hub write splits: nothing else in a file's name says that it is one.
_SPLIT_FILE = re.compile(r"(?P<split>[\w.]+)-\d{5}-of-\d{5}\.parquet")
_OTHER_SPLITS = ("val", "valid", "validation", "dev", "eval", "test", "testing", "evaluation")


def open_local(source: Path, split: str = "train", cache_dir: str | None = None) -> Dataset | None:
    """The rows of a folder or Parquet file; `None` for a folder that only `datasets` understands, as one with a script.

    A folder of images holds all of them, at any depth, with `metadata.jsonl` or text files beside them as captions; only
    where `train/` stands beside `test/` or the like it is `train/` alone. A folder of Parquet files holds all of them,
    unless they are named as splits are. What `save_to_disk` wrote is read as well.
    """
    if source.is_file():
        return _parquet([source], cache_dir) if source.suffix == ".parquet" else None
    if (source / "state.json").is_file() or (source / "dataset_dict.json").is_file():
        found = load_from_disk(str(source))
        return found[split] if isinstance(found, DatasetDict) else found
    folder = _without_other_splits(source, split)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_hidden(path, folder)]
    images = [path for path in files if path.suffix.lower() in _IMAGES]
    tables = [path for path in files if path.suffix == ".parquet" and path.name not in _METADATA]
    if images:
        return _image_folder(folder, images, cache_dir)
    if tables:
        return _parquet(_files_of_split(tables, split), cache_dir)
    kinds = {path.suffix.lower() for path in files}
    if kinds & set(_UNREAD) or any(path.name in _METADATA for path in files):
        raise ValueError(f"found no picture that can be read among its files of {', '.join(sorted(kinds))}")
    return None


def _without_other_splits(folder: Path, split: str) -> Path:
    """The folder of a split, where folders of others stand beside it."""
    others = [name for name in _OTHER_SPLITS if name != split and (folder / name).is_dir()]
    if not others or not (folder / split).is_dir():
        return folder
    left = sum(path.is_file() for name in others for path in (folder / name).rglob("*"))
    logger.warning(f"{folder}: reads {split}/ and leaves out {left} files of {', '.join(f'{o}/' for o in others)}")
    return folder / split


def _files_of_split(tables: Sequence[Path], split: str) -> list[Path]:
    """All files, unless all have the names that splits have."""
    splits = [match["split"] if (match := _SPLIT_FILE.fullmatch(path.name)) else None for path in tables]
    if None in splits:
        return list(tables)
    if split not in splits:
        raise ValueError(f"no files of the split {split}, only of {', '.join(sorted(set(splits)))}")
    chosen = [path for path, name in zip(tables, splits) if name == split]
    if len(chosen) < len(tables):
        rest = ", ".join(sorted(set(splits) - {split}))
        logger.warning(f"{tables[0].parent}: reads the split {split} and leaves out the {rest}")
    return chosen


def _parquet(files: Sequence[Path], cache_dir: str | None) -> Dataset:
    return _load("parquet", [glob.escape(str(path.absolute())) for path in files], cache_dir)


def _load(kind: str, files: Any, cache_dir: str | None) -> Dataset:
    return load_dataset(kind, data_files={"train": files}, split="train", cache_dir=cache_dir)


def _image_folder(folder: Path, images: Sequence[Path], cache_dir: str | None) -> Dataset:
    metadata = [path for name in _METADATA for path in folder.rglob(name)]
    kept = [glob.escape(str(path.absolute())) for path in (*images, *metadata)]
    dataset = _load("imagefolder", kept, cache_dir)
    if len(dataset) < len(images):
        logger.warning(f"{folder}: {len(images) - len(dataset)} of {len(images)} images have no line in the metadata")
    texts = [_text_beside(path) for path in images]
    if metadata or not any(text is not None for text in texts):
        return dataset
    if missing := [path.name for path, text in zip(images, texts) if text is None]:
        logger.warning(f"{folder}: {len(missing)} of {len(images)} images have no text file beside them: {missing[0]}")
    by_path = {str(path.absolute()): text for path, text in zip(images, texts)}
    paths = [cell["path"] for cell in dataset.cast_column("image", Image(decode=False))["image"]]
    return dataset.add_column("text", [by_path[path] for path in paths])


def _text_beside(image: Path) -> str | None:
    files = (image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((path.read_text(encoding="utf-8-sig").strip() for path in files if path.is_file()), None)
