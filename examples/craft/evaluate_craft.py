#!/usr/bin/env python
# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Compares tuned pipelines with their base on the same prompts and seeds: tables, alarms, a report, a grid of images.

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
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import check_min_version

from diffusers_craft import (
    GenerationSettings,
    RewardSettings,
    UserError,
    load_craft_dataset,
    load_pipeline,
    load_prompt_set,
    load_tuned_pipeline,
    score_images,
)
from diffusers_craft.scripts import (
    PROMPT_SETS,
    CandidateImages,
    ExactReward,
    PromptSet,
    ScoringJob,
    Stage,
    WorkDir,
    add_evaluation_arguments,
    add_reward_arguments,
    clip_embedding,
    decode_images,
    default_device,
    derive_seed,
    draw_comparison,
    evaluation_rows,
    fingerprint,
    format_checks,
    format_table,
    generate_candidates,
    generation_options,
    image_statistics,
    images_per_prompt,
    is_tiny,
    load_rewards,
    measure_images,
    parse_models,
    parse_pairs,
    parse_reward_weights,
    rank_and_world,
    read_examples,
    read_statistics,
    recorded_option,
    reward_source,
    run_checks,
    run_script,
    summarize,
    thumbnail_embedding,
    write_evaluation,
    write_evaluation_report,
    write_run_json,
)


check_min_version("0.34.0")

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 64
GRID_ROWS = 12  # prompts of a set shown in grid.png and report.html
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluation_arguments(parser, PROMPT_SETS)
    add_reward_arguments(parser, ["hps_v2.1", "pickscore", "aesthetic"], embedded="A tiny-* base brings its own.")
    return parser.parse_args(input_args)


@dataclass
class Evaluated:
    """A model under evaluation: where it comes from, and what determines its images."""

    source: dict[str, Any]
    settings: GenerationSettings
    options: dict[str, Any]


@dataclass
class PromptRun:
    """One prompt set: k images a prompt, its metrics, and by model the stages of images, scores and measurements."""

    prompts: PromptSet
    rows: pa.Table  # one an image to generate
    num_images: int  # a prompt
    metrics: list[str]
    about: dict[str, Any]
    images: dict[str, Stage] = field(default_factory=dict)
    scores: dict[str, dict[str, Stage]] = field(default_factory=dict)
    statistics: dict[str, Stage] = field(default_factory=dict)

    def read_scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Model to metric to (n, k) raw scores."""
        return {
            model: {
                name: s.read(["score"])["score"].to_numpy().reshape(-1, self.num_images) for name, s in one.items()
            }
            for model, one in self.scores.items()
        }


def free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_metrics(args: argparse.Namespace, base: str) -> tuple[dict[str, Any], RewardSettings]:
    """Metric name to model, and how to run them. Finds all checkpoints now, before hours of generation."""
    names = list(parse_reward_weights(args.rewards))
    settings = RewardSettings.from_args(args, names)
    metrics: dict[str, Any] = {"exact": ExactReward()} if is_tiny(base) else {}
    return metrics | load_rewards(names, settings, args.device, base), settings


def find_training_data(models: dict[str, str], given: Sequence[str]) -> dict[str, Any]:
    """Tuned model to the dataset it was trained on, where that is known and can still be read."""
    _, *tuned = models
    named, found = parse_pairs("--training_data", given, tuned), {}
    for name in tuned:
        folder = Path(models[name])
        record = (folder.parent if folder.name.startswith("checkpoint-") else folder) / "craft_run.json"
        run = json.loads(record.read_text()) if record.is_file() else {"options": {}}
        known = (recorded_option(run, option) for option in ("dataset_name", "train_data_dir"))
        source = named.get(name) or next(filter(None, known), None)
        try:
            if source:
                found[name] = load_craft_dataset(source)
        except ValueError as error:
            if name in named:
                raise
            logger.warning("%s: training data not found, so not compared with (%s)", name, error)
    return found


def load_model(source: dict[str, Any]) -> DiffusionPipeline:
    """The base, or a tuned model, which may be LoRA weights or a UNet for it."""
    return (load_tuned_pipeline if "base" in source else load_pipeline)(**source)


def open_models(args: argparse.Namespace, models: dict[str, str]) -> dict[str, Evaluated]:
    """Loads every model once before the first one generates: a refusal must not come after hours."""
    settings = GenerationSettings(args.resolution, args.num_inference_steps, args.guidance_scale, args.batch_size)
    evaluated: dict[str, Evaluated] = {}
    for name, model in models.items():
        source = {"name_or_path": model, "dtype": DTYPES[args.dtype], "device": args.device}
        source |= {"revision": args.revision, "variant": args.variant}
        source |= {"config": args.single_file_config, "cache_dir": args.cache_dir}
        if evaluated:
            source["base"] = next(iter(models.values()))
        pipeline = load_model(source)
        settings = settings.resolve(pipeline)  # what the flags leave open, the base decides for all
        options = generation_options(pipeline, settings, args.seed, save_latents=False)
        evaluated[name] = Evaluated(source, settings, options)
        del pipeline  # one model in memory at a time
        free_memory()
    return evaluated


def choose_metrics(metrics: dict[str, Any], sets: list[PromptSet], asked: Sequence[str]) -> dict[str, list[str]]:
    """Prompt set to its metrics. A metric with `bind` says itself whether it is one for these prompts."""
    chosen = {
        one.name: [name for name, metric in metrics.items() if not hasattr(metric, "bind") or metric.bind(one)]
        for one in sets
    }
    for name in asked:
        if not any(name in names for names in chosen.values()):
            raise UserError(
                f"--rewards {name}: expected prompts that it can judge, {name}=FILE, found {', '.join(chosen)}"
            )
    return chosen


def open_run(
    args: argparse.Namespace,
    prompts: PromptSet,
    rows: pa.Table,
    evaluated: dict[str, Evaluated],
    metrics: dict[str, Any],
    embedding: dict[str, Any],
) -> PromptRun:
    """The stages of one prompt set, of whose images `rows` has one each."""
    k = len(rows) // len(prompts.rows)
    about = {"prompts": f"{len(prompts.rows)} prompts, hash {fingerprint(prompts.prompts)}", "images_per_prompt": k}
    run, work = PromptRun(prompts, rows, k, list(metrics), about), WorkDir(args.output_dir)
    for name, one in evaluated.items():
        place, options, size = f"{prompts.name}/{name}", one.options | about, (len(rows), ROWS_PER_SHARD)
        run.images[name] = work.stage(f"images/{place}", options, *size)
        run.scores[name] = {
            title: work.stage(f"scores/{place}/{title}", options | {f"reward {title}": reward_source(metric)}, *size)
            for title, metric in metrics.items()
        }
        run.statistics[name] = work.stage(f"statistics/{place}", options | embedding, *size)
    return run


def generate(evaluated: dict[str, Evaluated], runs: list[PromptRun], seed: int) -> None:
    """A prompt's seeds are the same for all models, and never those of a build. Each model is loaded once."""
    for name, one in evaluated.items():
        missing = [run for run in runs if not run.images[name].is_complete]
        if missing:
            logger.info("%s: generating %d images", name, sum(run.images[name].num_rows for run in missing))
            pipeline = load_model(one.source)
            for run in missing:
                stage, noise_seed = run.images[name], derive_seed(seed, "evaluation")
                generate_candidates(pipeline, run.rows, one.settings, stage, noise_seed, shards=stage.share())
            del pipeline
            free_memory()
        for run in runs:
            run.images[name].finish()


def score(runs: list[PromptRun], metrics: dict[str, Any], settings: RewardSettings, device: str) -> None:
    """Scores all sets with the same metrics together, so that each reward model is loaded once."""
    for chosen in dict.fromkeys(tuple(run.metrics) for run in runs):
        jobs = [
            ScoringJob(CandidateImages(run.images[name]), stages)
            for run in runs
            if tuple(run.metrics) == chosen
            for name, stages in run.scores.items()
        ]
        score_images(jobs, {m: metrics[m] for m in chosen}, settings.residency, settings.workers(device))


def choose_embedding(args: argparse.Namespace, base: str, metrics: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """How the alarms compare images, and its record. The embedded CLIPs know the tiny world's looks only: thumbnails."""
    towers = [metric for metric in metrics.values() if hasattr(metric, "tower")]
    if args.alarm_embedding == "clip" and not towers:
        raise UserError("--alarm_embedding clip: expected the reward aesthetic or clip_score, found neither")
    if args.alarm_embedding == "pixels" or not towers or (args.alarm_embedding == "auto" and is_tiny(base)):
        return thumbnail_embedding, {"alarm_embedding": "pixels"}
    source = {"alarm_embedding": "clip", "alarm_embedding_source": reward_source(towers[0])}
    return clip_embedding(lambda images: towers[0].tower(images)), source  # towers may yet be shared


def check(runs: list[PromptRun], training: dict[str, Any], embed: Any) -> list[dict[str, Any]]:
    """The alarms' checks of all sets."""
    memories = {
        name: image_statistics(decode_images(data.select_columns("image")), embed).embeddings
        for name, data in training.items()
        if "image" in data.column_names
    }
    checks = []
    for run in runs:
        statistics = {name: read_statistics(stage, run.num_images) for name, stage in run.statistics.items()}
        trained_on = {
            name: [metric for metric in run.metrics if metric in data.column_names] for name, data in training.items()
        }
        found = run_checks(statistics, run.read_scores(), memories, trained_on)
        checks += [{"prompts": run.prompts.name, **one} for one in found]
    return checks


def describe(
    args: argparse.Namespace,
    evaluated: dict[str, Evaluated],
    metrics: dict[str, Any],
    runs: list[PromptRun],
    embedding: dict,
) -> dict[str, Any]:
    """All that the numbers depend on."""
    used = {name for run in runs for name in run.metrics}
    return {
        "base": next(iter(evaluated)),
        "models": {name: {"model": one.source["name_or_path"], **one.options} for name, one in evaluated.items()},
        "metrics": {name: reward_source(metric) for name, metric in metrics.items() if name in used},
        "prompts": {run.prompts.name: {**run.about, "metrics": run.metrics} for run in runs},
        "notes": [note for name in metrics if name in used and (note := getattr(metrics[name], "note", ""))],
        "seed": args.seed,
        **embedding,
    }


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    for name in ("diffusers_craft", __name__):
        logging.getLogger(name).setLevel(logging.INFO)

    args.device = args.device or default_device()
    # What can be wrong is found before a model generates.
    models = parse_models(args.base, args.tuned)
    base = next(iter(models.values()))
    sets = [load_prompt_set(source, args.prompt_column, args.num_prompts, args.seed) for source in args.prompts]
    if len({one.name for one in sets}) < len(sets):
        raise UserError(
            f"--prompts: expected sets of different names, found {' '.join(args.prompts)}; write NAME=FILE"
        )
    planned = {s.name: evaluation_rows(s.prompts, images_per_prompt(args.images_per_prompt, s.name)) for s in sets}
    metrics, settings = load_metrics(args, base)
    chosen = choose_metrics(metrics, sets, [name for name in metrics if name != "exact"])
    embed, embedding = choose_embedding(args, base, metrics)
    training = find_training_data(models, args.training_data)
    evaluated = open_models(args, models)
    runs = [
        open_run(args, s, planned[s.name], evaluated, {name: metrics[name] for name in chosen[s.name]}, embedding)
        for s in sets
    ]

    generate(evaluated, runs, args.seed)
    score(runs, metrics, settings, args.device)
    for run in runs:
        for name, stage in run.statistics.items():
            measure_images(run.images[name], stage, embed)
    if rank_and_world()[0] > 0:  # the first rank writes the results
        return
    scores = {run.prompts.name: run.read_scores() for run in runs}
    rows = [
        {"prompts": run.prompts.name, **row}
        for run in runs
        for row in summarize(scores[run.prompts.name], args.seed, run.prompts.categories)
    ]
    checks = check(runs, training, embed)
    alarms = [one for one in checks if one["fired"]]

    folder = Path(args.output_dir)
    described = describe(args, evaluated, metrics, runs, embedding)
    examples = {
        (name := run.prompts.name): read_examples(
            run.prompts.prompts[:GRID_ROWS], run.images, scores[name], run.num_images
        )
        for run in runs
    }
    write_evaluation(folder, described, rows, alarms, checks)
    write_evaluation_report(folder, described, rows, checks, scores, examples)
    for name, one in examples.items():
        draw_comparison(one).save(folder / ("grid.png" if len(examples) == 1 else f"grid_{name}.png"))
    write_run_json(folder / "craft_evaluate.json", args)
    print(format_table(rows, marks=False))
    if checks:
        print(format_checks(checks))
    for alarm in alarms:
        print(f"Alarm: {alarm['message']}")


if __name__ == "__main__":
    run_script(main, parse_args())
