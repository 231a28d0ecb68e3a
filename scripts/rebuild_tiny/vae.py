# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The VAE of the embedded pipelines: 64 px to 8 x 8 latents of four channels."""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from diffusers_craft.tiny.world import IMAGE_SIZE

from .data import sample_pair, scattered_picture, to_tensor
from .schedule import learning_rate


LATENT_CHANNELS = 4


def train_vae(work_dir: Path, steps: int, seed: int) -> None:
    """A small KL autoencoder, 64 px to 8 x 8 latents: three quarters of the steps on scattered objects, then the grid."""
    if (work_dir / "vae" / "config.json").exists():
        return
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 64, 96],
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )
    rng = np.random.default_rng(seed)
    pictures = to_tensor(np.stack([scattered_picture(rng) for _ in range(12000)]))
    fit_vae(vae, pictures, steps * 3 // 4, squared=0.0)
    pictures = to_tensor(np.stack([sample_pair(rng)[1] for _ in range(6000)]))
    fit_vae(vae, pictures, steps // 4, squared=2.0)
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures[:2048].split(256)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(work_dir / "vae")


def fit_vae(vae: AutoencoderKL, pictures: torch.Tensor, steps: int, squared: float) -> None:
    """Trains on pictures (n, 3, 64, 64) in [-1, 1] with a learning rate that ends at zero."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = learning_rate(optimizer, steps)
    start = time.time()
    for step in range(steps):
        x = pictures[torch.randint(len(pictures), (16,))]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            reconstruction = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(reconstruction, x, squared) + 1e-5 * posterior.kl().float().mean() / 256
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"vae step {step} loss {loss.item():.4f} seconds {time.time() - start:.0f}", flush=True)


def reconstruction_loss(reconstruction: torch.Tensor, x: torch.Tensor, squared: float) -> torch.Tensor:
    """Absolute plus `squared` times squared error; foreground counts six-fold, else colours and shapes come last."""
    ground = torch.cat([x[:, :, 0], x[:, :, -1]], -1).median(-1).values[:, :, None, None]
    weight = 1 + 5 * ((x - ground).norm(dim=1, keepdim=True) > 0.4).float()
    error = reconstruction.float() - x
    return ((error.abs() + squared * error**2) * weight).mean()
