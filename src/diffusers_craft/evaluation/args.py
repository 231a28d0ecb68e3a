# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags of `evaluate_craft.py` beside those of scoring, and what they choose: models, metrics, training data."""

import argparse
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..core.files import MAX_NAME, is_file_name
from ..core.run_record import read_run_json, recorded_option
from ..core.script import PRECISIONS, parse_pairs
from ..core.workdir import RUN_FILE
from ..data.dataset import load_craft_dataset
from ..errors import UserError
from ..models.loading import add_source_arguments
from ..prompts.sets import PromptSet, load_prompt_set
from ..rewards.settings import reward_source
from ..tiny import is_tiny
from .measures import Embed, clip_embedding, thumbnail_embedding
from .prompt_run import PromptRun


logger = logging.getLogger(__name__)

ALARM_EMBEDDINGS = ("auto", "clip", "pixels")


def add_evaluation_arguments(parser: argparse.ArgumentParser, prompt_sets: Sequence[str]) -> None:
    """Declares what is compared, on which prompts (`prompt_sets` are known by name), with which sampler."""
    add = parser.add_argument
    add(
        "--base",
        required=True,
        help="Base pipeline: Hub id, folder, .safetensors file, or tiny-sd15 / tiny-sdxl; NAME=MODEL sets its name in"
        " the table.",
    )
    add(
        "--tuned",
        nargs="+",
        default=[],
        help="Tuned models, each as MODEL or NAME=MODEL: pipelines as the base, or LoRA weights, a UNet or a training's"
        " checkpoint for it; one file of the Hub is ORG/NAME/FILE.",
    )
    add_source_arguments(parser)
    add(
        "--pretrained_vae_model_name_or_path",
        help="VAE of all models instead of their own: Hub id or folder; a single file without one needs it.",
    )
    add(
        "--prompts",
        nargs="+",
        required=True,
        help=f"One or several of {', '.join(prompt_sets)}, a file (txt, jsonl, csv, tsv, parquet), a Hub id or"
        " tiny-heldout; NAME=FILE for a benchmark's own file.",
    )
    text = "Metrics of a model's images as a whole: diversity, or MODULE:CLASS for one of your own."
    add("--set_metrics", nargs="+", default=[], metavar="NAME", help=text)
    add("--prompt_column", default="prompt", help="Column that holds the prompts.")
    add("--num_prompts", type=int, help="Prompts to draw with --seed; default: all.")
    add("--images_per_prompt", type=int, help="Each from a seed of its own; default: 4 for geneval, else 1.")
    add("--num_inference_steps", type=int, default=30, help="Denoising steps.")
    add("--guidance_scale", type=float, help="Default: the pipeline's own.")
    add("--resolution", type=int, help="Pixels; default: the base pipeline's own.")
    add("--batch_size", "--generation_batch_size", type=int, default=8, help="Images generated together.")
    add("--dtype", choices=list(PRECISIONS), default="fp16", help="Precision of generation on a GPU; a CPU uses fp32.")
    add("--device", help="Default: the GPU of this rank if there is one, else the CPU.")
    text = "What a tuned model was trained on, for the alarms; default: what its own craft_run.json says."
    add("--training_data", action="append", default=[], metavar="NAME=DATASET", help=text)
    add(
        "--alarm_embedding",
        choices=ALARM_EMBEDDINGS,
        default="auto",
        help="How images are compared for the alarms: by the CLIP of the reward aesthetic or clip_score, or as"
        " thumbnails; auto: CLIP where there is one, thumbnails for a tiny base.",
    )
    add("--seed", type=int, default=0, help="Seed of prompts, images and bootstrap.")
    add("--output_dir", required=True, help="Folder of images, scores and results; resumable.")


def as_texts(named: Mapping[str, str] | Sequence[str]) -> list[str]:
    """NAME=VALUE of each, as flags have it."""
    return [f"{name}={value}" for name, value in named.items()] if isinstance(named, Mapping) else list(named)


def parse_models(base: str, tuned: Sequence[str]) -> dict[str, str]:
    """Name in the table to model, the base first. Without NAME= the name is the last part of the path or id."""
    models: dict[str, str] = {}
    for flag, text in [("--base", base), *(("--tuned", text) for text in tuned)]:
        name, _, model = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        name = name or Path(model.rstrip("/")).name
        if not is_file_name(name) or not model:
            raise UserError(f"{flag}: expected MODEL or NAME=MODEL (name: letters, digits, . _ -), found {text!r}")
        if name in models:
            raise UserError(f"{flag}: expected distinct names, found {name!r} twice; write NAME=MODEL")
        models[name] = model
    return models


def open_prompt_set(given: str | PromptSet, column: str, num_prompts: int | None, seed: int) -> PromptSet:
    """What a text of `--prompts` names, or a set that exists, under a name for folders and files.

    The name of a file is made into one; a NAME= is taken at its word or refused.
    """
    found, chosen = given, True
    if isinstance(given, str):
        found, chosen = load_prompt_set(given, column, num_prompts, seed), "=" in given and not Path(given).exists()
    if not is_file_name(name := found.name) and not chosen:
        name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name)).strip("-")
        name = name.encode()[:MAX_NAME].decode(errors="ignore")
    if not is_file_name(name):
        wanted = "expected SOURCE or NAME=SOURCE (name: letters, digits, . _ -)"
        raise UserError(f"--prompts: {wanted}, found the name {found.name!r}")
    return replace(found, name=name)


def find_training_data(models: Mapping[str, str], given: Mapping[str, str] | Sequence[str] = ()) -> dict[str, Dataset]:
    """Tuned model to the dataset it was trained on, where that is known and can still be read."""
    _, *tuned = models
    named, found = parse_pairs("--training_data", as_texts(given), tuned), {}
    for name in tuned:
        folder = Path(models[name])
        record = (folder.parent if folder.name.startswith("checkpoint-") else folder) / RUN_FILE
        run = read_run_json(record) if record.is_file() else {"options": {}}
        known = (recorded_option(run, option) for option in ("dataset_name", "train_data_dir"))
        source = named.get(name) or next(filter(None, known), None)
        try:
            if source:
                found[name] = load_craft_dataset(source)
        except UserError as error:
            if name in named:
                raise
            logger.warning("%s: training data not found, so not compared with (%s)", name, error)
    return found


def choose_metrics(metrics: Mapping[str, Any], runs: Sequence[PromptRun]) -> None:
    """Gives each prompt set its metrics. One with `bind` says itself whether it is for these prompts."""
    for run in runs:
        fitting = [name for name, one in metrics.items() if not hasattr(one, "bind") or one.bind(run.prompts)]
        run.metrics = {name: metrics[name] for name in fitting}
    for name in metrics:
        if name != "exact" and not any(name in run.metrics for run in runs):
            found = ", ".join(run.prompts.name for run in runs)
            raise UserError(f"--rewards {name}: expected prompts that it can judge, {name}=FILE, found {found}")


def choose_embedding(asked: str, base: str, metrics: Mapping[str, Any]) -> tuple[Embed, dict[str, Any]]:
    """How the alarms compare images, and its record. The embedded CLIPs know the tiny world's looks only: thumbnails."""
    if asked not in ALARM_EMBEDDINGS:
        raise UserError(f"--alarm_embedding: expected one of {', '.join(ALARM_EMBEDDINGS)}, found {asked!r}")
    towers = [metric for metric in metrics.values() if hasattr(metric, "tower")]
    if asked == "clip" and not towers:
        raise UserError("--alarm_embedding clip: expected the reward aesthetic or clip_score, found neither")
    if asked == "pixels" or not towers or (asked == "auto" and is_tiny(base)):
        return thumbnail_embedding, {"alarm_embedding": "pixels"}
    source = {"alarm_embedding": "clip", "alarm_embedding_source": reward_source(towers[0])}
    return partial(clip_embedding, towers[0]), source  # whose tower may yet be shared
