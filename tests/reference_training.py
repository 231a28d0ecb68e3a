# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a training step should compute, from diffusers' own parts: of this package only `derive_seed` is used."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image

from diffusers_craft.scripts import derive_seed


class Example(NamedTuple):
    """A row as the UNet meets it: everything that the first step draws for it, for seed 0 and without dropout."""

    row: int
    noisy_latents: torch.Tensor  # (1, 4, h, w)
    timestep: torch.Tensor  # (1,) int64
    noise: torch.Tensor  # (1, 4, h, w)
    hidden_states: torch.Tensor  # (1, tokens, width)
    added: dict[str, torch.Tensor]  # SDXL's further conditioning


@torch.no_grad()
def first_step(model: Path, images: Sequence[Image.Image], prompts: Sequence[str]) -> Iterator[Example]:
    """The rows of the first global batch, in its order; as many as there are images, which have the model's size."""
    pipeline = DiffusionPipeline.from_pretrained(model, unet=None, safety_checker=None)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(0, "order", 0)))
    for slot, row in enumerate(order.tolist()):
        size = images[row].height
        posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(images[row])).latent_dist
        generator = torch.Generator().manual_seed(derive_seed(0, "draw", 0, slot))
        timestep = (1000 * torch.rand(3, dtype=torch.float64, generator=generator)[:1]).long()
        noise, of_posterior = torch.randn(2, *posterior.mean.shape, generator=generator)
        latents = (posterior.mean + posterior.std * of_posterior) * pipeline.vae.config.scaling_factor
        hidden_states, *others = pipeline.encode_prompt(prompts[row], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)  # fmt: skip
        added = {}
        if len(others) == 3:  # of SDXL: negative, pooled, negative pooled
            added = {"text_embeds": others[1], "time_ids": torch.tensor([[size, size, 0, 0, size, size]]).float()}
        yield Example(row, scheduler.add_noise(latents, noise, timestep), timestep, noise, hidden_states, added)


def error(unet: UNet2DConditionModel, example: Example) -> torch.Tensor:
    """Mean squared error of the predicted noise."""
    prediction = unet(
        example.noisy_latents, example.timestep, example.hidden_states, added_cond_kwargs=example.added or None
    ).sample
    return torch.nn.functional.mse_loss(prediction.float(), example.noise)
