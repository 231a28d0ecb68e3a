# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""From clean latents and noise to what the UNet sees and should predict."""

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler

from .objectives.min_snr import min_snr_weights
from .training_data import Draw


class MicroBatch(NamedTuple):
    """What one forward and backward pass sees: B rows of this process."""

    noisy_latents: torch.Tensor  # (B, C, h, w) x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
    timesteps: torch.Tensor  # (B,) int64
    conditioning: dict[str, torch.Tensor]  # name -> (B, ...)
    target: torch.Tensor  # (B, C, h, w) noise, velocity or sample, as the model predicts
    advantages: torch.Tensor  # (B,)
    timestep_weights: torch.Tensor | None  # (B,) of min-SNR; None weighs every timestep alike
    latents: torch.Tensor  # (B, C, h, w) x_0
    noise: torch.Tensor  # (B, C, h, w)
    rows: torch.Tensor  # (B,) int64 dataset rows
    slots: torch.Tensor  # (B,) int64, or (B / 2,) of pairs: place of each unit in the global batch; on the CPU


def diffuse(
    draw: Draw, noise_scheduler: DDPMScheduler, prediction_type: str, snr_gamma: float | None = None
) -> MicroBatch:
    """Adds the noise, and says what the model should make of it.

    Args:
        draw (`Draw`): clean latents, noise, timesteps and what conditions them.
        noise_scheduler (`DDPMScheduler`): the model's own schedule.
        prediction_type (`str`): `epsilon`, `v_prediction` or `sample`.
        snr_gamma (`float`, *optional*): of `min_snr_weights`.
    """
    noisy_latents = noise_scheduler.add_noise(draw.latents, draw.noise, draw.timesteps)
    if prediction_type == "epsilon":
        target = draw.noise
    elif prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(draw.latents, draw.noise, draw.timesteps)
    else:
        target = draw.latents
    weights = None
    if snr_gamma is not None:
        alphas_cumprod = noise_scheduler.alphas_cumprod.to(draw.timesteps.device)
        weights = min_snr_weights(alphas_cumprod, draw.timesteps, snr_gamma, prediction_type)
    return MicroBatch(
        noisy_latents=noisy_latents,
        timesteps=draw.timesteps,
        conditioning=draw.conditioning,
        target=target,
        advantages=draw.advantages,
        timestep_weights=weights,
        latents=draw.latents,
        noise=draw.noise,
        rows=draw.rows,
        slots=draw.slots,
    )
