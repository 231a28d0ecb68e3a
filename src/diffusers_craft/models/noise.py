# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""From clean latents and noise to what the UNet sees and should predict."""

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler

from ..objectives.base import MicroBatch


class Draw(NamedTuple):
    """Clean latents and everything random about one micro-batch of B rows, on the training device."""

    latents: torch.Tensor  # (B, C, h, w) sampled from the VAE's posterior, scaled
    noise: torch.Tensor  # (B, C, h, w) standard normal, but for a noise offset
    timesteps: torch.Tensor  # (B,) int64, uniform in [0, T)
    conditioning: dict[str, torch.Tensor]  # name -> (B, ...)
    advantages: torch.Tensor  # (B,)
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


def min_snr_weights(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, gamma: float, prediction_type: str
) -> torch.Tensor:
    """min(SNR, gamma) on the error of x_0, restated for what the model predicts; SNR = abar / (1 - abar).

    With d = the error of x_0, the error of the noise is SNR * d and that of the velocity (SNR + 1) * d. Without noise,
    as at the last timestep of a zero-terminal-SNR schedule, the weight is its limit (1 for noise, 0 else), not 0 / 0.

    Args:
        alphas_cumprod (`torch.Tensor`): (T,) abar of every timestep, in [0, 1).
        timesteps (`torch.Tensor`): (B,) int64, in [0, T).
        gamma (`float`): above 0; the paper's value is 5.
        prediction_type (`str`): `epsilon`, `v_prediction` or `sample`.

    Returns:
        `torch.Tensor`: (B,) dimensionless weights, float32.
    """
    abar = alphas_cumprod[timesteps].float()
    capped = (abar / (1 - abar)).clamp(max=gamma)
    if prediction_type == "sample":
        return capped
    if prediction_type == "v_prediction":
        return capped * (1 - abar)  # 1 / (SNR + 1) = 1 - abar
    return (gamma * (1 - abar) / abar).clamp(max=1.0)
