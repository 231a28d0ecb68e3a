# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishes a finished work folder as a dataset that plain `load_dataset` reads: Parquet, pictures and a card."""

from pathlib import Path

import pyarrow.parquet as pq

from .cards import dataset_card
from .dataset import DATASET_FOLDER, SCORED_FILE
from .hub import upload_files


PICTURES = ("funnel.png", "rewards.png", "gallery.png")
_NEEDED = (SCORED_FILE, "craft_build.json", "normalization.json", *(f"report/{name}" for name in PICTURES))


def publish_dataset(
    work_folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Publishes what a build left in its work folder; no stage is run again.

    Configuration `default` holds the selected images, `scores` all candidates with their scores and without images.

    Args:
        work_folder (`str` or `Path`): `--output_dir` of a finished build.
        repo_id (`str`): e.g. `"org/craft-top100"`.
        private (`bool`, *optional*): whether a new repository is private.
        token (`str`, *optional*): defaults to `HF_TOKEN` or the login.
        revision (`str`, *optional*): branch to push to.
        license (`str`, *optional*): of images and prompts, e.g. `"openrail++"`; by default the card says it is not stated.

    Returns:
        `str`: address of the commit.

    Raises:
        ValueError: if the build is not finished or the upload fails.
    """
    folder = Path(work_folder)
    data = sorted((folder / DATASET_FOLDER).glob("train-*.parquet"))
    missing = [name for name in _NEEDED if not (folder / name).is_file()] + [DATASET_FOLDER] * (not data)
    if missing:
        raise ValueError(
            f"work folder {folder}: expected a finished build, found no {missing[0]}; run the build again"
        )
    columns = {"default": pq.read_schema(data[0]).names, "scores": pq.read_schema(folder / SCORED_FILE).names}
    files: dict[str, Path | bytes] = {f"data/{path.name}": path for path in data}
    files["scores/train-00000-of-00001.parquet"] = folder / SCORED_FILE
    files |= {f"images/{name}": folder / "report" / name for name in PICTURES}
    files["README.md"] = dataset_card(folder, repo_id, columns, license).encode()
    return upload_files(
        repo_id,
        "dataset",
        files,
        "Upload the CRAFT dataset",
        private=private,
        token=token,
        revision=revision,
        replaced=("data/train-*.parquet", "scores/train-*.parquet"),
    )
