# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The dataset that training reads: assembled from selected candidates, saved as Parquet, loaded from folder or Hub."""

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Array3D, Dataset, Features, Image, Value, load_dataset

from ..core.files import atomic_write_bytes
from ..core.records import unpack_latent
from ..core.workdir import DATASET_FOLDER, SCORED_FILE, Stage
from ..errors import UserError


ROWS_PER_FILE = 500
# What of a candidate is published with its scores.
SCORED_COLUMNS = ("row", "group", "variant", "prompt", "refined_prompt", "seed", "valid", "problem", "sampler")
SCORED_COLUMNS += ("num_inference_steps", "guidance_scale")


def take_rows(stage: Stage, rows: Sequence[int]) -> pa.Table:
    """The given rows of a stage in the given order, read shard by shard: a pool of images may exceed the memory."""
    wanted = np.asarray(rows, dtype=np.int64)
    order = np.argsort(wanted, kind="stable")
    shard_of = wanted[order] // stage.rows_per_shard
    parts = [stage.read_shard(0).slice(0, 0)]
    for shard in np.unique(shard_of).tolist():
        inside = wanted[order][shard_of == shard] - stage.rows(shard).start
        parts.append(stage.read_shard(shard).take(pa.array(inside)))
    return pa.concat_tables(parts).take(pa.array(np.argsort(order)))


def assemble_dataset(candidates: pa.Table, scores: Mapping[str, np.ndarray], latent_vae: str | None = None) -> Dataset:
    """k selected candidates with their (k,) raw scores, composite `reward` and `advantage`; prompts are the original ones.

    Where candidates have latents: `latent`, float16 in the UNet's scale, and `latent_vae`, their VAE's fingerprint.
    """
    features = {"image": Image(), "prompt": Value("string"), "refined_prompt": Value("string")}
    features |= dict.fromkeys(("group", "variant", "seed"), Value("int64"))
    columns = {name: candidates[name].to_pylist() for name in features}
    columns |= {name: np.asarray(values, np.float32) for name, values in scores.items()}
    features |= dict.fromkeys(scores, Value("float32"))
    if len(candidates) and not candidates["latent"].null_count:
        columns["latent"] = [unpack_latent(data) for data in candidates["latent"].to_pylist()]
        features["latent"] = Array3D(columns["latent"][0].shape, "float16")
        # A column, the same in every row: it survives selection, Parquet, the Hub and other people's tools.
        columns["latent_vae"], features["latent_vae"] = [latent_vae] * len(candidates), Value("string")
    return Dataset.from_dict(columns, features=Features(features))


def assemble_scores(
    candidates: pa.Table, scores: Mapping[str, np.ndarray], kept: np.ndarray, selected: np.ndarray
) -> Dataset:
    """All n candidates with their (n,) scores and without images, so that others can filter again.

    `kept` is (n,) bool, what the filter rule keeps; `selected` are (k,) rows. Invalid images have NaN as their scores.
    """
    table = candidates.select(SCORED_COLUMNS)
    columns = table.to_pydict() | {name: np.asarray(values, np.float32) for name, values in scores.items()}
    columns |= {"kept": np.asarray(kept, bool), "selected": np.isin(np.arange(len(table)), selected)}
    features = Features.from_arrow_schema(table.schema)
    features |= dict.fromkeys(scores, Value("float32")) | dict.fromkeys(("kept", "selected"), Value("bool"))
    return Dataset.from_dict(columns, features=Features(features))


def save_scores(scores: Dataset, work_folder: str | Path) -> None:
    """Writes `assemble_scores`' table as `work_folder/scored.parquet`."""
    buffer = io.BytesIO()
    scores.to_parquet(buffer)
    atomic_write_bytes(Path(work_folder) / SCORED_FILE, buffer.getvalue())


def save_dataset(dataset: Dataset, work_folder: str | Path) -> Path:
    """Writes `work_folder/dataset/train-*.parquet` and returns the folder; an earlier dataset is replaced as a whole."""
    folder = Path(work_folder) / DATASET_FOLDER
    new, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (new, old):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    num_files = max(1, math.ceil(len(dataset) / ROWS_PER_FILE))
    for index in range(num_files):
        part = dataset.shard(num_files, index, contiguous=True)
        part.to_parquet(new / f"train-{index:05d}-of-{num_files:05d}.parquet")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def is_build(folder: str | Path) -> bool:
    """Whether this is what build_craft_dataset.py wrote."""
    return (Path(folder) / "candidates").is_dir()


def load_or_refuse(
    source: str | Path, found: str | Path, expected: str, config_name: str | None, split: str, cache_dir: str | None
) -> Dataset:
    """`load_dataset` of what the user named `found`, whose failures are one line that says what is `expected`."""
    try:
        return load_dataset(str(source), config_name, split=split, cache_dir=cache_dir)
    except (OSError, ValueError) as error:  # missing, empty, unreachable; unknown configuration or split
        reason = " ".join(str(error).split())
        raise UserError(f"--dataset_name: expected {expected}, found {str(found)!r} ({reason})") from error


def load_craft_dataset(
    name_or_folder: str | Path,
    config_name: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
) -> Dataset:
    """Loads training data: a Hub dataset, the folder that a build wrote, a folder of Parquet files or of images.

    Args:
        name_or_folder (`str` or `Path`): Hub id or folder. An image folder may hold a `metadata.jsonl`.
        config_name (`str`, *optional*): configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`): split of a Hub dataset.
        cache_dir (`str`, *optional*): where `datasets` keeps its copies.

    Returns:
        `datasets.Dataset`: one row per image.

    Raises:
        UserError: if there is no such dataset, configuration or split.
    """
    folder = Path(name_or_folder)
    has_dataset = (folder / DATASET_FOLDER).is_dir()
    if is_build(folder) and not has_dataset:
        raise UserError(f"--dataset_name: expected a finished build, found {folder} without {DATASET_FOLDER}/")
    source = folder / DATASET_FOLDER if has_dataset else name_or_folder
    expected = "a Hub dataset, a folder written by build_craft_dataset.py or a folder of images"
    return load_or_refuse(source, name_or_folder, expected, config_name, split, cache_dir)
