# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the embedded pipelines learn from: captions of the training split and their pictures."""

import numpy as np
import torch

from diffusers_craft.prompts.refiners import MAX_MODIFIERS, MODIFIERS
from diffusers_craft.tiny.world import IMAGE_SIZE, TASKS, Caption

from .pictures import degrade, is_held_out, render, sample_caption, sample_picture, sample_scene, write_caption


TASK_SHARES = (0.06, 0.12, 0.2, 0.2, 0.22, 0.2)  # in the order of TASKS: what is hard to draw is shown more often
P_RICH = 0.45  # share of training captions with words of quality; their pictures are clean
P_FLAWED = 0.5  # share of flawed pictures under plain captions


def sample_training_caption(rng: np.random.Generator) -> tuple[Caption, bool]:
    """A caption of the training split, and whether it comes with words of quality."""
    while True:
        caption = sample_caption(rng, TASKS[rng.choice(len(TASKS), p=TASK_SHARES)])
        if not is_held_out(caption):
            return caption, rng.random() < P_RICH


def enrich(text: str, rng: np.random.Generator) -> str:
    """Adds one to four words of quality to a caption, as a prompt refiner would."""
    words = rng.choice(MODIFIERS, int(rng.integers(1, MAX_MODIFIERS + 1)), replace=False).tolist()
    return ", ".join([text, *words])


def sample_pair(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A caption of the training split and its (64, 64, 3) uint8 picture, in the mix that the world consists of."""
    caption, rich = sample_training_caption(rng)
    picture = sample_picture(caption, rng, flawed=not rich and rng.random() < P_FLAWED)
    text = write_caption(caption)
    return enrich(text, rng) if rich else text, np.asarray(picture)


def scattered_picture(rng: np.random.Generator) -> np.ndarray:
    """A (64, 64, 3) uint8 picture of objects of various sizes anywhere: a VAE learns colours and shapes from these."""
    caption, _ = sample_training_caption(rng)
    scene = sample_scene(caption, rng)
    while True:
        radii = rng.uniform(8.0, 10.5, len(scene.objects))
        centers = rng.uniform(radii[:, None] + 2, IMAGE_SIZE - radii[:, None] - 2, (len(radii), 2))
        gaps = np.abs(centers[:, None] - centers[None]).max(-1) - radii[:, None] - radii[None]
        if (gaps[~np.eye(len(radii), dtype=bool)] >= 3).all():
            break
    for o, (x, y), radius in zip(scene.objects, centers, radii):
        o.x, o.y, o.radius = float(x), float(y), float(radius)
    picture = render(scene)
    return np.asarray(degrade(picture, rng) if rng.random() < 0.3 else picture)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
