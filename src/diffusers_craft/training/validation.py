# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pictures drawn while training: always from the same noise, so that they show what the weights changed."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from ..core.records import derive_seed
from .settings import TrainingSettings


NUM_INFERENCE_STEPS = 25


def draw_validation_images(
    pipeline: DiffusionPipeline, accelerator: Accelerator, settings: TrainingSettings, step: int
) -> None:
    """Draws `--validation_prompt` into `validation/step-<step>/` and the trackers; no random state is touched.

    Args:
        pipeline (`DiffusionPipeline`): around the weights as they are now.
        accelerator (`Accelerator`): holds the trackers.
        settings (`TrainingSettings`): prompt, number and size.
        step (`int`): finished optimizer steps.
    """
    folder = Path(settings.output_dir) / "validation" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for index in range(settings.num_validation_images):
        seed = derive_seed(settings.seed, "validation", index)
        images += pipeline(
            settings.validation_prompt,
            height=settings.resolution,
            width=settings.resolution,
            num_inference_steps=NUM_INFERENCE_STEPS,
            generator=torch.Generator().manual_seed(seed),
        ).images
        images[-1].save(folder / f"{index}.png")
    pixels = np.stack([np.asarray(image) for image in images])  # (N, H, W, 3)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"validation": pixels}, step=step, **layout)
