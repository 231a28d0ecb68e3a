# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Datasets in local folders and files, every row of them.

`datasets` guesses the kind of a folder from the majority of its files, and splits from their names: `a train.png` or
`retrain.parquet` would leave all other files out. Here a folder is what its files say, and what is left out is counted.
"""

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, load_dataset, load_from_disk
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..core.files import is_hidden
from ..core.tables import read_csv, read_text


logger = logging.getLogger(__name__)

CAPTION_SUFFIXES = (".txt", ".caption")  # kohya's captions beside the pictures
TEXT_COLUMNS = ("text", "caption", "prompt")  # never numbers, whatever their cells look like
_IMAGES, _METADATA = tuple(ImageFolder.EXTENSIONS), ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_UNREAD = (".heic", ".heif", ".avif", ".jxl", ".cr2", ".nef", ".dng")  # pictures that Pillow does not open by itself
# As `datasets` and the Hub write splits: nothing else in a file's name says that it is one.
_SPLIT_FILE = re.compile(r"(?P<split>[\w.]+)-\d{5}-of-\d{5}\.parquet")
_OTHER_SPLITS = ("val", "valid", "validation", "dev", "eval", "test", "testing", "evaluation")


def open_local(source: Path, split: str, cache_dir: str | None, flag: str) -> Dataset | None:
    """The rows of a folder or Parquet file; `None` for a folder that only `datasets` understands, as one with a script.

    A folder of images holds all of them, at any depth, with `metadata.jsonl` or text files beside them as captions; only
    where `train/` stands beside `test/` or the like it is `train/` alone. A folder of Parquet files holds all of them,
    unless they are named as splits are; pictures without captions beside them are not counted. What `save_to_disk` wrote
    is read as well.
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
    metadata = [path for path in files if path.name in _METADATA]
    if tables and not (images and (metadata or any(map(_text_file, images)))):
        if images:
            logger.warning(f"{source}: reads the Parquet files and leaves out {len(images)} pictures without captions")
        return _parquet(_files_of_split(tables, split, folder), cache_dir)
    if unread := [path for path in files if path.suffix.lower() in _UNREAD]:
        logger.warning(f"{source}: leaves out {len(unread)} pictures that cannot be read, such as {unread[0].name}")
    if images:
        return _image_folder(folder, images, metadata, cache_dir, flag)
    kinds = {path.suffix.lower() for path in files}
    if unread or metadata:
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


def _split_of(table: Path, folder: Path, known: Sequence[str]) -> str | None:
    """The split that a file's name says, its whole name, or a folder around it."""
    if match := _SPLIT_FILE.fullmatch(table.name):
        return match["split"]
    names = (table.stem, *table.relative_to(folder).parts[:-1])
    return next((name for name in names if name in known), None)


def _files_of_split(tables: Sequence[Path], split: str, folder: Path) -> list[Path]:
    """All files, unless all are of splits."""
    splits = [_split_of(path, folder, (split, *_OTHER_SPLITS)) for path in tables]
    if None in splits:
        return list(tables)
    if split not in splits:
        told = {match["split"] for path in tables if (match := _SPLIT_FILE.fullmatch(path.name))}
        if len(told) > 1 or told & {"train", *_OTHER_SPLITS}:  # `part-00000-of-00004` is no split
            raise ValueError(f"no files of the split {split}, only of {', '.join(sorted(set(splits)))}")
        return list(tables)
    chosen = [path for path, name in zip(tables, splits) if name == split]
    if len(chosen) < len(tables):
        rest = ", ".join(sorted(set(splits) - {split}))
        logger.warning(f"{tables[0].parent}: reads the split {split} and leaves out the {rest}")
    return chosen


def _parquet(files: Sequence[Path], cache_dir: str | None) -> Dataset:
    return _load("parquet", [glob.escape(str(path.absolute())) for path in files], cache_dir)


def _load(kind: str, files: Any, cache_dir: str | None) -> Dataset:
    return load_dataset(kind, data_files={"train": files}, split="train", cache_dir=cache_dir)


def _image_folder(
    folder: Path, images: Sequence[Path], metadata: Sequence[Path], cache_dir: str | None, flag: str
) -> Dataset:
    # Few patterns: `datasets` compares each of them with every file.
    root, ends = glob.escape(str(folder.absolute())), sorted({path.suffix for path in images})
    patterns = [f"{root}/**/*{end}" for end in ends] + sorted({f"{root}/**/{path.name}" for path in metadata})
    dataset = _load("imagefolder", patterns, cache_dir)
    if "image" not in dataset.column_names:  # pairs, whose columns are several
        return dataset
    if len(dataset) < len(images):
        logger.warning(f"{folder}: {len(images) - len(dataset)} of {len(images)} images have no line in the metadata")
    paths = [cell["path"] for cell in dataset.cast_column("image", Image(decode=False))["image"]]
    if metadata:
        tables = [path for path in metadata if path.suffix == ".csv"]
        return _with_own_words(dataset, paths, tables, flag) if tables else dataset
    files = {str(path.absolute()): _text_file(path) for path in images}
    if not any(files.values()):
        return dataset
    if missing := [path for path in files if files[path] is None]:
        some = f"{len(missing)} of {len(images)} images have no text file beside them"
        logger.warning(f"{folder}: {some}: {Path(missing[0]).name}")
    return dataset.add_column("text", [read_text(f, flag).strip() if (f := files[path]) else None for path in paths])


def _text_file(image: Path) -> Path | None:
    files = (image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((path for path in files if path.is_file()), None)


def _with_own_words(dataset: Dataset, paths: Sequence[str], tables: Sequence[Path], flag: str) -> Dataset:
    """The texts of `metadata.csv` as they stand there: `datasets` reads `null`, `None` and `NA` as nothing, 007 as 7."""
    rows = {}
    for table in tables:
        for row in read_csv(table, flag):
            name = row.get("file_name", "").replace("\\", "/")
            rows[os.path.normpath(table.parent.absolute() / name)] = row
    for column in dataset.column_names:
        kind = getattr(dataset.features[column], "dtype", None)
        if kind in ("string", "large_string", "null") or column in TEXT_COLUMNS:
            own = [rows.get(os.path.normpath(path), {}).get(column) for path in paths]
            old = zip(own, dataset[column])
            dataset = dataset.remove_columns(column)
            dataset = dataset.add_column(column, [found if new is None else new for new, found in old])
    return dataset
