#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Compares tuned pipelines with their base on the same prompts and seeds: a table, a grid of images, alarms.

    python evaluate_craft.py --base base=tiny-sd15 --tuned craft=outputs/craft sft=outputs/sft --prompts tiny-heldout \
        --output_dir outputs/evaluation
"""

# /// script
# dependencies = [
#     "diffusers-craft[rewards]",
#     "diffusers>=0.34.0",
#     "torch>=2.4",
# ]
# ///

import argparse
import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import check_min_version
from PIL import Image

from diffusers_craft import (
    CandidateImages,
    GenerationSettings,
    RewardSettings,
    ScoringJob,
    Stage,
    WorkDir,
    add_reward_arguments,
    default_device,
    derive_seed,
    evaluation_rows,
    exact_score,
    find_alarms,
    fingerprint,
    format_table,
    generate_candidates,
    generation_options,
    image_grid,
    image_statistics,
    is_tiny,
    load_pipeline,
    load_prompts,
    load_rewards,
    parse_caption,
    parse_reward_weights,
    rank_and_world,
    reward_source,
    run_script,
    score_images,
    summarize,
    write_evaluation,
    write_run_json,
)


check_min_version("0.34.0")

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 64
GRID_ROWS = 12  # prompts shown in grid.png
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ExactMetric:
    """The tiny world's exact scorer as a metric; nothing is trained on it."""

    name = "exact"
    source = {"scorer": "exact scorer of the tiny world", "unit": "1 if the image shows its caption exactly, else 0"}

    def score(self, prompts: list[str], images: list[Image.Image]) -> np.ndarray:
        return exact_score(prompts, images)


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base",
        required=True,
        help="Base pipeline: Hub id, folder, or tiny-sd15 / tiny-sdxl; NAME=MODEL sets its name in the table.",
    )
    parser.add_argument(
        "--tuned", nargs="+", default=[], help="Tuned pipelines, each as MODEL or NAME=MODEL; as the base otherwise."
    )
    parser.add_argument("--revision", default=None, help="Revision of the base on the Hub.")
    parser.add_argument("--variant", default=None, help="File variant of the base, e.g. fp16.")
    parser.add_argument("--prompts", required=True, help="File (txt, jsonl, csv, parquet), Hub id or tiny-heldout.")
    parser.add_argument("--prompt_column", default="prompt", help="Column that holds the prompts.")
    parser.add_argument("--num_prompts", type=int, default=None, help="Prompts to draw with --seed; default: all.")
    add_reward_arguments(parser, ["hps_v2.1", "pickscore", "aesthetic"], embedded="A tiny-* base brings its own.")
    parser.add_argument("--num_inference_steps", type=int, default=30, help="Denoising steps.")
    parser.add_argument("--guidance_scale", type=float, default=None, help="Default: the pipeline's own.")
    parser.add_argument("--resolution", type=int, default=None, help="Pixels; default: the base pipeline's own.")
    parser.add_argument(
        "--batch_size", "--generation_batch_size", type=int, default=8, help="Images generated together."
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="fp16", help="Precision of generation on a GPU; a CPU uses fp32."
    )
    parser.add_argument("--device", default=None, help="Default: the GPU of this rank if there is one, else the CPU.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of prompts, images and bootstrap.")
    parser.add_argument("--output_dir", required=True, help="Folder of images, scores and results; resumable.")
    return parser.parse_args(input_args)


def parse_models(base: str, tuned: list[str]) -> dict[str, str]:
    """Name in the table to model, the base first. Without NAME= the name is the last part of the path or id."""
    models: dict[str, str] = {}
    for flag, text in [("--base", base), *(("--tuned", text) for text in tuned)]:
        name, _, model = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        name = name or Path(model.rstrip("/")).name
        if not re.fullmatch(r"[\w.-]+", name) or not model:
            raise ValueError(f"{flag}: expected MODEL or NAME=MODEL (name: letters, digits, . _ -), found {text!r}")
        if name in models:
            raise ValueError(f"{flag}: expected distinct names, found {name!r} twice; write NAME=MODEL")
        models[name] = model
    return models


def shows_captions(prompts: list[str]) -> bool:
    """Whether every prompt is a caption of the tiny world."""
    try:
        return all(parse_caption(prompt) for prompt in prompts)
    except ValueError:
        return False


@dataclass
class Evaluated:
    """A model under evaluation: where it comes from, what determines its images, and where they are kept."""

    source: dict[str, Any]
    settings: GenerationSettings
    options: dict[str, Any]
    images: Stage


def free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def open_models(args: argparse.Namespace, models: dict[str, str], prompts: list[str]) -> dict[str, Evaluated]:
    """Loads every model once before the first one generates: a refusal must not come after hours."""
    settings = GenerationSettings(args.resolution, args.num_inference_steps, args.guidance_scale, args.batch_size)
    about_prompts = {"prompts": f"{len(prompts)} prompts, hash {fingerprint(prompts)}"}
    work, evaluated = WorkDir(args.output_dir), {}
    for name, model in models.items():
        source = {"name_or_path": model, "dtype": DTYPES[args.dtype], "device": args.device}
        if not evaluated:
            source |= {"revision": args.revision, "variant": args.variant}
        pipeline = load_pipeline(**source)
        settings = settings.resolve(pipeline)  # what the flags leave open, the base decides for all
        options = generation_options(pipeline, settings, args.seed, save_latents=False) | about_prompts
        images = work.stage(f"images/{name}", options, len(prompts), ROWS_PER_SHARD)
        evaluated[name] = Evaluated(source, settings, options, images)
        del pipeline  # one model in memory at a time
        free_memory()
    return evaluated


def generate(evaluated: dict[str, Evaluated], prompts: list[str], seed: int) -> None:
    """One image per model and prompt; a prompt's seed is the same for all models, and never one of a build."""
    rows = evaluation_rows(prompts)
    for name, one in evaluated.items():
        if not one.images.is_complete:
            logger.info("%s: generating %d images", name, len(prompts))
            pipeline = load_pipeline(**one.source)
            noise_seed, shards = derive_seed(seed, "evaluation"), one.images.share()
            generate_candidates(pipeline, rows, one.settings, one.images, noise_seed, shards=shards)
            del pipeline
            free_memory()
        one.images.finish()


def load_metrics(args: argparse.Namespace, base: str, prompts: list[str]) -> tuple[dict[str, Any], RewardSettings]:
    """Metric name to model, and how to run them. Finds all checkpoints now, before hours of generation."""
    names = list(parse_reward_weights(args.rewards))
    settings = RewardSettings.from_args(args, names)
    metrics: dict[str, Any] = {}
    if is_tiny(base) and shows_captions(prompts):
        metrics["exact"] = ExactMetric()
    return metrics | load_rewards(names, settings, args.device, base), settings


def score(
    args: argparse.Namespace, evaluated: dict[str, Evaluated], metrics: dict[str, Any], settings: RewardSettings
) -> dict[str, dict[str, Any]]:
    """Model to metric to (n,) raw scores."""
    work, jobs = WorkDir(args.output_dir), {}
    for name, one in evaluated.items():
        stages = {}
        for metric_name, metric in metrics.items():
            options = one.options | {f"reward {metric_name}": reward_source(metric)}
            path = f"scores/{name}/{metric_name}"
            stages[metric_name] = work.stage(path, options, one.images.num_rows, ROWS_PER_SHARD)
        jobs[name] = ScoringJob(CandidateImages(one.images), stages)
    score_images(list(jobs.values()), metrics, settings.residency, settings.workers(args.device))
    return {
        name: {metric: stage.read(["score"])["score"].to_numpy() for metric, stage in job.stages.items()}
        for name, job in jobs.items()
    }


def decode(row: dict[str, Any]) -> Image.Image | None:
    """The picture of a candidate row, `None` where it is not valid."""
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") if row["valid"] else None


def read_images(stage: Stage) -> Iterator[Image.Image | None]:
    """A model's pictures in order, one shard in memory at a time."""
    for shard in range(stage.num_shards):
        yield from map(decode, stage.read_shard(shard, ["image", "valid"]).to_pylist())


def draw_grid(
    evaluated: dict[str, Evaluated], prompts: list[str], scores: dict[str, dict[str, np.ndarray]]
) -> Image.Image:
    """The first prompts as rows, models as columns, scores under each image."""
    rows = prompts[:GRID_ROWS]
    columns = [list(islice(read_images(one.images), len(rows))) for one in evaluated.values()]
    captions = [
        "\n".join(f"{metric} {values[row]:.4g}" for metric, values in scores[name].items())
        for row in range(len(rows))
        for name in evaluated
    ]
    return image_grid(
        [image for row in zip(*columns) for image in row],
        columns=len(columns),
        captions=captions,
        column_titles=list(evaluated),
        row_titles=rows,
        caption_lines=captions[0].count("\n") + 1,
    )


def describe(
    args: argparse.Namespace, evaluated: dict[str, Evaluated], metrics: dict[str, Any], num_prompts: int
) -> dict[str, Any]:
    """All that the numbers depend on."""
    return {
        "models": {name: {"model": one.source["name_or_path"], **one.options} for name, one in evaluated.items()},
        "metrics": {name: reward_source(metric) for name, metric in metrics.items()},
        "prompts": args.prompts,
        "num_prompts": num_prompts,
        "seed": args.seed,
    }


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    for name in ("diffusers_craft", __name__):
        logging.getLogger(name).setLevel(logging.INFO)

    args.device = args.device or default_device()
    # What can be wrong is found before a model generates.
    models = parse_models(args.base, args.tuned)
    prompts = load_prompts(args.prompts, args.prompt_column, args.num_prompts, args.seed)
    metrics, settings = load_metrics(args, next(iter(models.values())), prompts)
    evaluated = open_models(args, models, prompts)

    generate(evaluated, prompts, args.seed)
    scores = score(args, evaluated, metrics, settings)
    if rank_and_world()[0] > 0:  # the first rank writes the results
        return
    rows = summarize(scores, args.seed)
    alarms = find_alarms({name: image_statistics(read_images(one.images)) for name, one in evaluated.items()})

    folder = Path(args.output_dir)
    write_evaluation(folder, describe(args, evaluated, metrics, len(prompts)), rows, alarms)
    draw_grid(evaluated, prompts, scores).save(folder / "grid.png")
    write_run_json(folder / "craft_evaluate.json", args)
    print(format_table(rows, marks=False))
    for alarm in alarms:
        print(f"Alarm: {alarm['message']}")


if __name__ == "__main__":
    run_script(main, parse_args())
