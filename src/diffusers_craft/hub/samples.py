# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pictures for the card of a trained model: those of its last validation, or drawn by the files that are published."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline

from ..core.files import atomic_write_json, fingerprint, read_json
from ..core.records import derive_seed
from ..core.run_record import recorded_option
from ..models.tuned import load_tuned_pipeline


logger = logging.getLogger(__name__)

NUM_SAMPLES = 4
NUM_INFERENCE_STEPS = 25
SAMPLES_FOLDER = "samples"  # inside the run's folder
_RECORD = "samples.json"


class Sample(NamedTuple):
    path: Path
    prompt: str


def sample_pictures(folder: Path, record: Mapping[str, Any]) -> list[Sample]:
    """Pictures of a finished run; what is not there yet is drawn once and kept in `samples/`.

    Args:
        folder (`Path`): a training script's `--output_dir`.
        record (`Mapping`): its `craft_run.json`.

    Returns:
        `list[Sample]`: at least one, unless the run has neither a validation prompt nor captions.
    """
    options = record["options"]
    validation = folder / "validation" / f"step-{options['max_train_steps']:06d}"
    if options.get("validation_prompt") and (found := sorted(validation.glob("*.png"), key=lambda p: int(p.stem))):
        return [Sample(path, options["validation_prompt"]) for path in found[:NUM_SAMPLES]]
    prompts = [options["validation_prompt"]] * NUM_SAMPLES if options.get("validation_prompt") else record["captions"]
    target, run = folder / SAMPLES_FOLDER, fingerprint(record)
    if not _is_drawn(target, run):
        logger.info("Drawing %d pictures for the card", len(prompts))
        _draw(load_trained(folder, record), prompts, options, target, run)
    return [Sample(target / f"{index}.png", prompt) for index, prompt in enumerate(prompts)]


def load_trained(folder: Path, record: Mapping[str, Any]) -> DiffusionPipeline:
    """The pipeline that a finished run made, in float16 on a GPU: its own, or the base with its LoRA."""
    where = {name: record["options"][name] for name in ("revision", "variant")}
    paths = ("pretrained_model_name_or_path", "single_file_config", "cache_dir")
    base, config, where["cache_dir"] = (recorded_option(record, name) for name in paths)
    return load_tuned_pipeline(str(folder), base, dtype=torch.float16, config=config, fuse=False, **where)


def _is_drawn(target: Path, run: str) -> bool:
    path = target / _RECORD
    return path.is_file() and read_json(path)["run"] == run


def _draw(pipeline: DiffusionPipeline, prompts: list[str], options: Mapping[str, Any], target: Path, run: str) -> None:
    target.mkdir(exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    for index, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(derive_seed(options["seed"], "card", index))
        size, steps = options["resolution"], NUM_INFERENCE_STEPS
        images = pipeline(prompt, height=size, width=size, num_inference_steps=steps, generator=generator).images
        images[0].save(target / f"{index}.png")
    about = {"run": run, "prompts": prompts, "num_inference_steps": NUM_INFERENCE_STEPS, "seed": options["seed"]}
    atomic_write_json(target / _RECORD, about)
