# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What preference objectives train on: pairs, labels, prompts; from a build's folder or from a dataset of pairs.

A build keeps every candidate with its raw scores, so pairs come out of the same images as CRAFT's dataset.
"""

import glob
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, concatenate_datasets, load_dataset
from tqdm.auto import tqdm

from ..core.files import read_json
from ..core.records import derive_seed
from ..core.workdir import BUILD_FILE, CONSTANTS_FILE, OPTIONS_FILE, Stage
from ..errors import UserError
from ..selection.composite import composite_reward
from ..selection.filtering import PAIRINGS, check_num_pairs, group_pairs
from .dataset import is_build, load_or_refuse
from .settings import DataSettings


# Names under which datasets of pairs (Pick-a-Pic, and plainer ones) keep image 0 and 1, caption, label and score.
_PAIR_COLUMNS = (("jpg_0", "jpg_1", "caption"), ("image_0", "image_1", "prompt"), ("image_0", "image_1", "caption"))
_UIDS = ("image_0_uid", "image_1_uid")
_TIE = 0.5


class Preferences(NamedTuple):
    """m images and the n pairs among them."""

    images: Dataset  # m rows with `image` and `prompt`, and perhaps `uid`, what the image is called
    pairs: np.ndarray  # (n, 2) int64 rows of `images`: winner, loser
    scores: np.ndarray | None  # (n, 2) their rewards in one unit, NaN where unknown; None if the data have none
    score_range: float | None  # highest minus lowest score of all images, also of those in no pair

    def choose(self, chosen: np.ndarray) -> "Preferences":
        """The pairs of (k,) indices or of an (n,) mask; all images stay."""
        return self._replace(pairs=self.pairs[chosen], scores=None if self.scores is None else self.scores[chosen])

    def without_unused_images(self) -> "Preferences":
        """Only the images that are in a pair."""
        used, places = np.unique(self.pairs, return_inverse=True)
        return self._replace(images=self.images.select(used), pairs=places.reshape(self.pairs.shape))

    def without_repeated_images(self) -> "Preferences":
        """Every image once for a prompt, so that what it won and lost in several pairs comes together."""
        keys: dict[tuple, int] = {}
        names = zip(_image_names(self.images), self.images["prompt"], strict=True)
        places = np.array([keys.setdefault(name, len(keys)) for name in names], dtype=np.int64)
        _, first = np.unique(places, return_index=True)
        return self._replace(images=self.images.select(first), pairs=places[self.pairs])


def random_rows(num_rows: int, count: int | None, seed: int) -> np.ndarray:
    """The rows that `--max_train_samples` leaves: `count` of them, ascending, the same for a seed; all for `None`."""
    if count is None or count >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(derive_seed(seed, "subset")).choice(num_rows, count, replace=False))


def load_preferences(name_or_folder: str | Path, settings: DataSettings) -> Preferences:
    """Pairs of a build's folder, or of a dataset with two images per row; the settings say how, and where to load from.

    A dataset has the columns `jpg_0`, `jpg_1`, `caption`, `label_0` (Pick-a-Pic) or `image_0`, `image_1`, `prompt`,
    `label_0`; optionally `score_0`, `score_1` and `image_0_uid`, `image_1_uid`. `label_0` is 1 where image 0 won, 0 where
    image 1 did, 0.5 for a tie. Every pair with a winner must have its images and a caption.
    """
    if is_build(name_or_folder):
        return _pairs_of_build(Path(name_or_folder).expanduser(), settings)
    if settings.pairing != PAIRINGS[0]:
        raise UserError(
            f"--pairing: expected a build's folder with {settings.pairing}, found a dataset, whose pairs are made"
        )
    expected = "a build's folder or a dataset of pairs"
    where = (settings.dataset_config_name, "train", settings.cache_dir, settings.data_flag)
    return _pairs_of_dataset(load_or_refuse(name_or_folder, name_or_folder, expected, *where), settings.data_flag)


def best_pairs(preferences: Preferences, count: int | None) -> Preferences:
    """What `--num_pairs` leaves of a dataset: the pairs whose winners score highest, ties in the dataset's order."""
    if count is None:
        return preferences
    if preferences.scores is None:
        wanted = "expected a build's folder or score_0 and score_1, which tell the best winners"
        raise UserError(f"--num_pairs: {wanted}, found neither (--max_train_samples takes random pairs)")
    check_num_pairs(count, len(preferences.pairs))
    return preferences.choose(np.argsort(-preferences.scores[:, 0], kind="stable")[:count])  # NaN is sorted last


def composite_scores(folder: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) composite rewards, groups and variants of a build's candidates, with its own weights and constants."""
    folder = Path(folder)
    for name in (BUILD_FILE, CONSTANTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"--dataset_name: expected a finished build, found {folder} without {name}")
    weights, constants = (read_json(folder / name) for name in (BUILD_FILE, CONSTANTS_FILE))
    if not isinstance(weights := weights.get("composite_weights"), dict) or "normalization" not in constants:
        raise UserError(f"--dataset_name: expected the weights and constants of a build, found others in {folder}")
    rewards = {name: _column(folder / "scores" / name, "score") for name in weights}
    composite = composite_reward(rewards, weights, constants["normalization"], constants)
    groups, variants = (_column(folder / "candidates", name) for name in ("group", "variant"))
    return composite, groups, variants


def labels_of_pairs(pairs: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """(k,) rows that are in a pair, ascending, and their labels: +1 if it won at least once, else -1 (Diffusion-KTO)."""
    labels = np.zeros(num_images)
    labels[pairs[:, 1]] = -1.0
    labels[pairs[:, 0]] = 1.0
    rows = np.flatnonzero(labels)
    return rows, labels[rows]


def prompts_of_build(folder: str | Path) -> list[str]:
    """All prompts, each once, in order."""
    return list(dict.fromkeys(_column(Path(folder).expanduser() / "candidates", "prompt").tolist()))


def _pairs_of_build(folder: Path, settings: DataSettings) -> Preferences:
    composite, groups, variants = composite_scores(folder)
    pairs = group_pairs(composite, groups, variants, settings.pairing, settings.num_pairs)
    if not len(pairs):
        words = "expected groups with a better and a worse image"
        raise UserError(f"{settings.data_flag}: {words}, found none in {folder}")
    stage = _stage(folder / "candidates")
    shards, columns = map(stage.shard_path, range(stage.num_shards)), ["image", "prompt"]
    files = [glob.escape(str(shard)) for shard in shards]
    for shard in range(stage.num_shards):
        stage.read_shard(shard, columns)  # for its checksums, which `datasets` does not look at
    images = load_dataset("parquet", data_files=files, split="train", columns=columns)
    preferences = Preferences(images.cast_column("image", Image()), pairs, composite[pairs], spread(composite))
    return preferences.without_unused_images()


def _pairs_of_dataset(dataset: Dataset, flag: str) -> Preferences:
    """Images are those of all rows, ties too, which count for the range of scores."""
    found = set(dataset.column_names)
    names = next((names for names in _PAIR_COLUMNS if {*names, "label_0"} <= found), None)
    if names is None:
        wanted = " or ".join(", ".join([*names, "label_0"]) for names in _PAIR_COLUMNS[:2])
        raise UserError(f"{flag}: expected the columns {wanted}, found {', '.join(dataset.column_names)}")
    labels = _numbers(dataset, "label_0")  # NaN where there is none
    known = np.isfinite(labels)
    if len(wrong := np.flatnonzero(known & ~np.isin(labels, (0.0, _TIE, 1.0)))):
        row = int(wrong[0])
        raise UserError(f"label_0: expected 1, 0 or 0.5 for a tie, found {labels[row]:g} in row {row}")
    decided = known & (labels != _TIE)
    if "has_label" in found:
        decided &= np.asarray(dataset["has_label"], dtype=bool)
    if not decided.any():
        raise UserError(f"{flag}: expected pairs with a winner, found {len(labels)} rows without one")
    kept = np.flatnonzero(decided | _complete(dataset, names, decided))
    pairs, scores, score_range = len(kept) * np.arange(2) + np.arange(len(kept))[:, None], None, None
    pairs, is_second = pairs[decided[kept]], labels[decided] < _TIE
    if {"score_0", "score_1"} <= found:
        scores = np.stack([_numbers(dataset, name) for name in ("score_0", "score_1")], axis=1)
        score_range = spread(scores)
        scores = _swapped(scores[decided], is_second)
    return Preferences(_images_of_pairs(dataset.select(kept), names), _swapped(pairs, is_second), scores, score_range)


def spread(scores: np.ndarray) -> float:
    """Highest minus lowest of all finite scores; 0 if there are none."""
    finite = scores[np.isfinite(scores)]
    return float(np.ptp(finite)) if len(finite) else 0.0


def _swapped(sides: np.ndarray, is_second: np.ndarray) -> np.ndarray:
    """(n, 2) of images 0 and 1 as winner and loser."""
    return np.where(is_second[:, None], sides[:, ::-1], sides)


def _images_of_pairs(dataset: Dataset, names: tuple[str, str, str]) -> Dataset:
    """All images 0, then all images 1, as columns `image`, `prompt` and `uid` where the dataset has it."""
    halves, has_uids = [], set(_UIDS) <= set(dataset.column_names)
    for image, uid in zip(names[:2], _UIDS, strict=True):
        columns = {image: "image", names[2]: "prompt"} | ({uid: "uid"} if has_uids else {})
        half = dataset.select_columns(list(columns)).rename_columns(columns)
        halves.append(half.cast_column("image", Image()))
    return concatenate_datasets(halves)


def _numbers(dataset: Dataset, column: str) -> np.ndarray:
    """(n,) float64; NaN for null and whatever is not finite."""
    values = list(dataset[column])
    for row, value in enumerate(values):
        if not (value is None or isinstance(value, (int, float))):
            raise UserError(f"{column}: expected numbers, found {value!r} in row {row}")
    numbers = np.array([float("nan") if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _complete(dataset: Dataset, names: tuple[str, str, str], decided: np.ndarray) -> np.ndarray:
    """(n,) whether a row has both images and a caption; refuses the dataset if one of the decided pairs has not."""
    complete = np.ones(len(dataset), dtype=bool)
    kind = getattr(dataset.features[names[2]], "dtype", None)
    if kind not in ("string", "large_string"):
        raise UserError(f"{names[2]}: expected text, found a column of {kind}")
    for name in names:
        missing = _is_null(dataset.data.column(name))
        if len(wrong := np.flatnonzero(missing & decided)):
            expected = "a caption" if name == names[2] else "an image"
            raise UserError(f"{name}: expected {expected} in every pair with a winner, found none in row {wrong[0]}")
        complete &= ~missing
    return complete


def _is_null(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) by the table's own marks: no image is read."""
    if not pa.types.is_struct(column.type):
        return column.is_null().to_numpy()
    parts = [pc.struct_field(column, name).is_null().to_numpy() for name in ("bytes", "path")]
    return parts[0] & parts[1]


def _image_names(images: Dataset) -> list[Any]:
    """(m,) what tells images apart: their `uid`, else a digest of their files."""
    uids = list(images["uid"]) if "uid" in images.column_names else [None] * len(images)
    if all(uid is not None for uid in uids):
        return uids
    files = images.select_columns("image").cast_column("image", Image(decode=False))
    names = []
    for row in tqdm(files, desc="Comparing images", disable=len(files) < 1000):
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        names.append(hashlib.sha256(content).digest())
    return names


def _stage(folder: Path) -> Stage:
    if not (folder / OPTIONS_FILE).is_file():
        raise UserError(f"--dataset_name: expected a finished build, found no rows in {folder}")
    return Stage.there(folder)


def _column(folder: Path, name: str) -> np.ndarray:
    return _stage(folder).read([name])[name].to_numpy()
