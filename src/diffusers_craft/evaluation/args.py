# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags of `evaluate_craft.py` beside those of scoring, and the models that they name."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.script import PRECISIONS
from ..errors import UserError
from ..models.loading import add_source_arguments


ALARM_EMBEDDINGS = ("auto", "clip", "pixels")
PROTOCOL_IMAGES = {"geneval": 4}  # images per prompt where the benchmark itself says so; 1 elsewhere


def add_evaluation_arguments(parser: argparse.ArgumentParser, prompt_sets: Sequence[str]) -> None:
    """Declares what is compared, on which prompts (`prompt_sets` are known by name), with which sampler."""
    parser.add_argument(
        "--base",
        required=True,
        help="Base pipeline: Hub id, folder, .safetensors file, or tiny-sd15 / tiny-sdxl; NAME=MODEL sets its name in the"
        " table.",
    )
    parser.add_argument(
        "--tuned",
        nargs="+",
        default=[],
        help="Tuned models, each as MODEL or NAME=MODEL: pipelines as the base, or LoRA weights, a UNet or a"
        " training's checkpoint for it.",
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--prompts",
        nargs="+",
        required=True,
        help=f"One or several of {', '.join(prompt_sets)}, a file (txt, jsonl, csv, tsv, parquet), a Hub id or tiny-heldout; "
        "NAME=FILE for a benchmark's own file.",
    )
    parser.add_argument(
        "--set_metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Metrics of a model's images as a whole: diversity, or MODULE:CLASS for one of your own.",
    )
    parser.add_argument("--prompt_column", default="prompt", help="Column that holds the prompts.")
    parser.add_argument("--num_prompts", type=int, default=None, help="Prompts to draw with --seed; default: all.")
    parser.add_argument(
        "--images_per_prompt",
        type=int,
        default=None,
        help="Each from a seed of its own; default: 4 for geneval, else 1.",
    )
    parser.add_argument("--num_inference_steps", type=int, default=30, help="Denoising steps.")
    parser.add_argument("--guidance_scale", type=float, default=None, help="Default: the pipeline's own.")
    parser.add_argument("--resolution", type=int, default=None, help="Pixels; default: the base pipeline's own.")
    parser.add_argument(
        "--batch_size", "--generation_batch_size", type=int, default=8, help="Images generated together."
    )
    parser.add_argument(
        "--dtype", choices=list(PRECISIONS), default="fp16", help="Precision of generation on a GPU; a CPU uses fp32."
    )
    parser.add_argument("--device", default=None, help="Default: the GPU of this rank if there is one, else the CPU.")
    parser.add_argument(
        "--training_data",
        action="append",
        default=[],
        metavar="NAME=DATASET",
        help="What a tuned model was trained on, for the alarms; default: what its own craft_run.json says.",
    )
    parser.add_argument(
        "--alarm_embedding",
        choices=ALARM_EMBEDDINGS,
        default="auto",
        help="How images are compared for the alarms: by the CLIP of the reward aesthetic or clip_score, or as "
        "thumbnails; auto: CLIP where there is one, thumbnails for a tiny base.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of prompts, images and bootstrap.")
    parser.add_argument("--output_dir", required=True, help="Folder of images, scores and results; resumable.")


def as_texts(named: Mapping[str, str] | Sequence[str]) -> list[str]:
    """NAME=VALUE of each, as flags have it."""
    return [f"{name}={value}" for name, value in named.items()] if isinstance(named, Mapping) else list(named)


def parse_models(base: str, tuned: Sequence[str]) -> dict[str, str]:
    """Name in the table to model, the base first. Without NAME= the name is the last part of the path or id."""
    models: dict[str, str] = {}
    for flag, text in [("--base", base), *(("--tuned", text) for text in tuned)]:
        name, _, model = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        name = name or Path(model.rstrip("/")).name
        if not re.fullmatch(r"[\w.-]+", name) or not model:
            raise UserError(f"{flag}: expected MODEL or NAME=MODEL (name: letters, digits, . _ -), found {text!r}")
        if name in models:
            raise UserError(f"{flag}: expected distinct names, found {name!r} twice; write NAME=MODEL")
        models[name] = model
    return models


def images_per_prompt(asked: int | None, prompt_set: str) -> int:
    """How many images each prompt of a set gets."""
    return asked if asked is not None else PROTOCOL_IMAGES.get(prompt_set, 1)
