# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What preference objectives train on: pairs, labels, prompts; from a build's folder or from a dataset of pairs.

A build keeps every candidate with its raw scores, so pairs come out of the same images as CRAFT's dataset.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Image, concatenate_datasets, load_dataset

from .composite import composite_reward
from .pairing import group_pairs


# Names under which datasets of pairs (Pick-a-Pic, and plainer ones) keep image 0 and 1, caption, label and score.
_PAIR_COLUMNS = (("jpg_0", "jpg_1", "caption"), ("image_0", "image_1", "prompt"), ("image_0", "image_1", "caption"))
_TIE = 0.5


class Preferences(NamedTuple):
    """m images and the n pairs among them."""

    images: Dataset  # m rows with `image` and `prompt`
    pairs: np.ndarray  # (n, 2) int64 rows of `images`: winner, loser
    scores: np.ndarray | None  # (m,) rewards in one unit, NaN where unknown; None if the data have none
    score_range: float | None  # highest minus lowest score of all candidates, also of those in no pair


def load_preferences(name_or_folder: str | Path, args: Namespace, split: str = "train") -> Preferences:
    """Pairs of a build's folder, or of a dataset with two images a row.

    Args:
        name_or_folder (`str` or `Path`): folder that build_craft_dataset.py wrote, or a dataset (Hub id or folder) with
            the columns `jpg_0`, `jpg_1`, `caption`, `label_0` (Pick-a-Pic) or `image_0`, `image_1`, `prompt`, `label_0`;
            optionally `score_0`, `score_1`. `label_0` is 1 where image 0 won, 0 where image 1 did, 0.5 for a tie.
        args (`argparse.Namespace`): `pairing`, `num_pairs`, `dataset_config_name`, `cache_dir`.
        split (`str`, *optional*, defaults to `"train"`): of a dataset.

    Raises:
        ValueError: if columns or scores are missing, or no pair is left.
    """
    folder = Path(name_or_folder)
    if (folder / "candidates").is_dir():
        return _pairs_of_build(folder, args)
    try:
        dataset = load_dataset(str(name_or_folder), args.dataset_config_name, split=split, cache_dir=args.cache_dir)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        wanted = "expected a build's folder or a dataset of pairs"
        raise ValueError(f"--dataset_name: {wanted}, found {str(name_or_folder)!r} ({reason})") from error
    return _pairs_of_dataset(dataset, args)


def composite_scores(folder: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The composite reward of every candidate of a build, with the build's own weights and constants.

    Returns:
        (n,) composite, groups and variants.

    Raises:
        ValueError: if the build is not finished.
    """
    folder = Path(folder)
    record, constants = folder / "craft_build.json", folder / "normalization.json"
    for path in (record, constants):
        if not path.is_file():
            raise ValueError(f"--dataset_name: expected a finished build, found {folder} without {path.name}")
    weights = json.loads(record.read_text(encoding="utf-8"))["composite_weights"]
    constants = json.loads(constants.read_text(encoding="utf-8"))
    rewards = {name: _column(folder / "scores" / name, "score") for name in weights}
    composite = composite_reward(rewards, weights, constants["normalization"], constants)
    groups, variants = (_column(folder / "candidates", name) for name in ("group", "variant"))
    return composite, groups, variants


def labels_of_pairs(pairs: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Single labels: +1 for an image that won at least once, -1 for one that only lost (Diffusion-KTO's rule).

    Args:
        pairs (`np.ndarray`): (n, 2) rows of winner and loser.
        num_images (`int`): m.

    Returns:
        (k,) rows that are in a pair, ascending, and their (k,) labels.
    """
    labels = np.zeros(num_images)
    labels[pairs[:, 1]] = -1.0
    labels[pairs[:, 0]] = 1.0
    rows = np.flatnonzero(labels)
    return rows, labels[rows]


def distinct_prompts(name_or_folder: str | Path, dataset: Dataset | None, column: str) -> list[str]:
    """All prompts of a build's folder, else the distinct ones of a dataset's column, in order."""
    folder = Path(name_or_folder)
    if (folder / "candidates").is_dir():
        return list(dict.fromkeys(_column(folder / "candidates", "prompt").tolist()))
    if column not in dataset.column_names:
        found = ", ".join(dataset.column_names)
        raise ValueError(f"--caption_column: expected one of the dataset's columns ({found}), found {column!r}")
    return list(dict.fromkeys(dataset[column]))


def _pairs_of_build(folder: Path, args: Namespace) -> Preferences:
    composite, groups, variants = composite_scores(folder)
    pairs = group_pairs(composite, groups, variants, args.pairing, args.num_pairs)
    if not len(pairs):
        raise ValueError(f"--dataset_name: expected groups with a better and a worse image, found none in {folder}")
    used, places = np.unique(pairs, return_inverse=True)
    files = [str(path) for path in _shards(folder / "candidates")]
    images = load_dataset("parquet", data_files=files, split="train", columns=["image", "prompt"])
    images = images.select(used).cast_column("image", Image())
    score_range = float(np.nanmax(composite) - np.nanmin(composite))
    return Preferences(images, places.reshape(pairs.shape), composite[used], score_range)


def _pairs_of_dataset(dataset: Dataset, args: Namespace) -> Preferences:
    found = set(dataset.column_names)
    names = next((names for names in _PAIR_COLUMNS if {*names, "label_0"} <= found), None)
    if names is None:
        wanted = " or ".join(", ".join([*names, "label_0"]) for names in _PAIR_COLUMNS[:2])
        raise ValueError(f"--dataset_name: expected the columns {wanted}, found {', '.join(dataset.column_names)}")
    first, second, caption = names
    labels = np.array([float("nan") if value is None else value for value in dataset["label_0"]], dtype=np.float64)
    decided = np.isfinite(labels) & (labels != _TIE)
    if "has_label" in found:
        decided &= np.asarray(dataset["has_label"], dtype=bool)
    rows = np.flatnonzero(decided)[: args.num_pairs]
    if not len(rows):
        raise ValueError(f"--dataset_name: expected pairs with a winner, found {len(labels)} ties")
    dataset, labels = dataset.select(rows), labels[rows]
    halves = [
        dataset.select_columns([image, caption]).rename_columns(
            {image: "image", caption: "prompt"} if caption != "prompt" else {image: "image"}
        )
        for image in (first, second)
    ]
    images = concatenate_datasets([half.cast_column("image", Image()) for half in halves])
    sides = np.stack([np.arange(len(rows)), len(rows) + np.arange(len(rows))], axis=1)
    pairs = np.where((labels > _TIE)[:, None], sides, sides[:, ::-1])
    if not {"score_0", "score_1"} <= found:
        return Preferences(images, pairs, None, None)
    scores = np.concatenate([np.asarray(dataset[name], dtype=np.float64) for name in ("score_0", "score_1")])
    return Preferences(images, pairs, scores, float(np.nanmax(scores) - np.nanmin(scores)))


def _shards(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _column(folder: Path, name: str) -> np.ndarray:
    shards = _shards(folder)
    if not shards:
        raise ValueError(f"--dataset_name: expected a finished build, found no rows in {folder}")
    return np.concatenate([pq.read_table(path, columns=[name])[name].to_numpy() for path in shards])
