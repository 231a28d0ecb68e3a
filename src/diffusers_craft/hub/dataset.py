# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishes a finished work folder as a dataset that plain `load_dataset` reads: Parquet, pictures and a card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..core.files import read_json
from ..core.workdir import BUILD_FILE, CONSTANTS_FILE, DATASET_FOLDER, SCORED_FILE
from ..errors import UserError
from ..tiny import PROMPTS
from .dataset_card import dataset_card
from .upload import HubRepo, as_hub_id, hub_license


PICTURES = ("funnel.png", "rewards.png", "gallery.png")
_NEEDED = (SCORED_FILE, BUILD_FILE, CONSTANTS_FILE, *(f"report/{name}" for name in PICTURES))


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
        license (`str`, *optional*): of the dataset, e.g. `"openrail++"`; by default the card says it is not stated.

    Returns:
        `str`: address of the commit.

    Raises:
        UserError: if the build is not finished or the upload fails.
    """
    folder = Path(work_folder)
    data = sorted((folder / DATASET_FOLDER).glob("train-*.parquet"))
    missing = [name for name in _NEEDED if not (folder / name).is_file()] + [DATASET_FOLDER] * (not data)
    if missing:
        raise UserError(f"work folder {folder}: expected a finished build, found no {missing[0]}; run the build again")
    repo = HubRepo(repo_id, "dataset", private, token, revision)
    columns = {"default": pq.read_schema(data[0]).names, "scores": pq.read_schema(folder / SCORED_FILE).names}
    files: dict[str, Path | bytes] = {f"data/{path.name}": path for path in data}
    files["scores/train-00000-of-00001.parquet"] = folder / SCORED_FILE
    files |= {f"images/{name}": folder / "report" / name for name in PICTURES}
    record, constants = read_json(folder / BUILD_FILE), read_json(folder / CONSTANTS_FILE)
    card = dataset_card(record, constants, repo.open(), columns, license, _prompts_license(record, token))
    files["README.md"] = card.encode()
    replaced = ("data/train-*.parquet", "scores/train-*.parquet")
    return repo.upload(folder, files, "Upload the CRAFT dataset", replaced)


def _prompts_license(record: Mapping[str, Any], token: str | None) -> str | None:
    """The licence that the prompts' source states on the Hub; the embedded prompts have this project's."""
    source = record["options"]["prompts"]
    if source in PROMPTS:
        return "apache-2.0"
    repo_id = as_hub_id(str(source).split(":")[0], record.get("paths"))
    return hub_license(repo_id, "dataset", token) if repo_id else None
