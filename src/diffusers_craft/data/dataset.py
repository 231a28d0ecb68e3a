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
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetCard
from yaml import YAMLError

from ..core.files import atomic_write_bytes
from ..core.load import hub_reason
from ..core.output import full_disk_named
from ..core.records import unpack_latent
from ..core.workdir import DATASET_FOLDER, REPORT_FOLDER, SCORED_FILE, Stage
from ..errors import UserError
from .local import open_local


ROWS_PER_FILE = 500
_DATASET_FOLDERS = (DATASET_FOLDER, f"{DATASET_FOLDER}.new", f"{DATASET_FOLDER}.old")
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
    check_places(work_folder)
    folder, new, old = (Path(work_folder) / name for name in _DATASET_FOLDERS)
    for leftover in (new, old):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    num_files = max(1, math.ceil(len(dataset) / ROWS_PER_FILE))
    with full_disk_named(folder.parent, dataset.data.nbytes, f"{folder.name}/"):
        try:
            for index in range(num_files):
                part = dataset.shard(num_files, index, contiguous=True)
                part.to_parquet(new / f"train-{index:05d}-of-{num_files:05d}.parquet")
        except OSError:
            shutil.rmtree(new, ignore_errors=True)  # a full disk needs its space
            raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def check_places(work_folder: str | Path) -> None:
    """Refuses what stands where a build puts its dataset and report: before hours of work, and never overwritten.

    A link is no place for the dataset, which is replaced as a whole; a report may lie behind one.
    """
    for name in (*_DATASET_FOLDERS, REPORT_FOLDER):
        path = Path(work_folder) / name
        is_link = path.is_symlink() and not (name == REPORT_FOLDER and path.is_dir())
        if is_link or (path.exists() and not path.is_dir()):
            found = f"found {'a symbolic link' if is_link else 'a file'}"
            raise UserError(f"--output_dir: expected a folder or nothing at {path}, {found}; move it away")


def is_build(folder: str | Path) -> bool:
    """Whether this is what build_craft_dataset.py wrote."""
    return (Path(folder).expanduser() / "candidates").is_dir()


def _has_configurations(folder: Path) -> bool:
    """Whether this is a copy of a Hub dataset whose card says which files are what."""
    card = folder / "README.md"
    try:
        return card.is_file() and bool(DatasetCard.load(card).data.get("configs"))
    except (ValueError, TypeError, YAMLError):  # somebody's notes
        return False


def load_or_refuse(
    source: str | Path,
    found: str | Path,
    expected: str,
    config_name: str | None,
    split: str,
    cache_dir: str | None,
    flag: str = "--dataset_name",
) -> Dataset:
    """What the user named `found`: all of a folder or file here, else a Hub dataset; failures are one line."""
    path = Path(source).expanduser()
    try:
        is_for_datasets = not path.exists() or _has_configurations(path)
        if not is_for_datasets and (local := open_local(path, split, cache_dir, flag)) is not None:
            if config_name is None:
                return local
            wanted = "expected none for a folder or file without a card that lists configurations"
            raise UserError(f"--dataset_config_name: {wanted}, found {config_name!r}")
        place = str(path if path.exists() else source)
        return load_dataset(place, config_name, split=split, cache_dir=cache_dir)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, DatasetsError) as error:
        # Missing, empty, unreachable; unknown configuration or split; files that do not fit each other, which
        # `datasets` says in the cause only.
        reason = hub_reason(error) or " ".join(str(error.__cause__ or error).split())
        name = getattr(error, "filename", None)
        if isinstance(error, OSError) and name and not Path(name).absolute().is_relative_to(path.absolute()):
            raise UserError(f"--cache_dir: expected a folder that can be written, found {name!r}") from error
        raise UserError(f"{flag}: expected {expected}, found {str(found)!r} ({reason:.400})") from error


def load_craft_dataset(
    name_or_folder: str | Path,
    config_name: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
    flag: str = "--dataset_name",
) -> Dataset:
    """Loads training data: a Hub dataset, the folder that a build wrote, a folder of Parquet files or of images.

    Args:
        name_or_folder (`str` or `Path`): Hub id, Parquet file or folder. A folder of images is read whole, at any depth,
            with its `metadata.jsonl` or `.csv`, or with the text file beside each image (column `text`); a folder of
            Parquet files too, unless they are named as splits are (`train-00000-of-00002.parquet`).
        config_name (`str`, *optional*): configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`): split of a Hub dataset.
        cache_dir (`str`, *optional*): where `datasets` keeps its copies.
        flag (`str`, *optional*, defaults to `"--dataset_name"`): where the user named it, for errors.

    Returns:
        `datasets.Dataset`: one row per image.

    Raises:
        UserError: if there is no such dataset, configuration or split.
    """
    folder = Path(name_or_folder).expanduser()
    has_dataset = (folder / DATASET_FOLDER).is_dir()
    if is_build(folder) and not has_dataset:
        raise UserError(f"{flag}: expected a finished build, found {folder} without {DATASET_FOLDER}/")
    source = folder / DATASET_FOLDER if has_dataset else name_or_folder
    expected = "a Hub dataset, a folder written by build_craft_dataset.py or a folder of images"
    return load_or_refuse(source, name_or_folder, expected, config_name, split, cache_dir, flag)
