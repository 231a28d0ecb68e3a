# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pictures drawn while training: always from the same noise, so that they show what the weights changed."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from ..core.records import derive_seed


NUM_INFERENCE_STEPS = 25


def draw_validation_images(pipeline: DiffusionPipeline, accelerator: Accelerator, args: Namespace, step: int) -> None:
    """Draws `--validation_prompt` into `validation/step-<step>/` and the trackers; no random state is touched.

    Args:
        pipeline (`DiffusionPipeline`): around the weights as they are now.
        accelerator (`Accelerator`): holds the trackers.
        args (`argparse.Namespace`): flags of `add_training_arguments`.
        step (`int`): finished optimizer steps.
    """
    folder = Path(args.output_dir) / "validation" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for index in range(args.num_validation_images):
        seed = derive_seed(args.seed, "validation", index)
        images += pipeline(
            args.validation_prompt,
            height=args.resolution,
            width=args.resolution,
            num_inference_steps=NUM_INFERENCE_STEPS,
            generator=torch.Generator().manual_seed(seed),
        ).images
        images[-1].save(folder / f"{index}.png")
    pixels = np.stack([np.asarray(image) for image in images])  # (N, H, W, 3)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"validation": pixels}, step=step, **layout)
