# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What latents mean: how a VAE's are scaled, encoded, decoded and told from another's; nothing else looks at the scale.

Everywhere outside, latents (B, C, h, w) have the denoiser's scale, as diffusers' pipelines make it of the VAE's own:
(z - latents_mean) / latents_std * scaling_factor, or (z - shift_factor) * scaling_factor.
"""

import hashlib
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..errors import UserError


MAX_DECODE_PIXELS = 1024 * 1024  # pixels decoded by one call of the VAE in float32
_SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def latent_scales(vae: torch.nn.Module) -> dict[str, Any]:
    """What of a VAE's configuration says how its latents are scaled."""
    return {name: vae.config[name] for name in _SCALES if vae.config.get(name) is not None}


def latent_factor(vae: torch.nn.Module) -> int:
    """Pixels along one side of a latent."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def latent_shape(vae: torch.nn.Module, resolution: int) -> tuple[int, int, int]:
    """(C, h, w) of a square image's latent; a `UserError` unless the pixels are a multiple of the VAE's factor."""
    factor = latent_factor(vae)
    if resolution % factor:
        raise UserError(f"--resolution: expected a multiple of {factor} for this VAE, found {resolution}")
    side = resolution // factor
    return vae.config.latent_channels, side, side


def vae_fingerprint(vae: torch.nn.Module) -> str:
    """A line that two VAEs share if their latents mean the same: the same encoder and the same scale.

    Decoders play no part: VAEs with an improved decoder keep the latents of the original. Of the encoder's weights only
    the signs count, which no conversion between fp32, fp16 and bf16 changes: a build that generates in half precision
    and a training that loads the same VAE in float32 agree. E.g. `scaling_factor=0.18215 encoder=0f1e2d3c4b5a6978`.
    """
    digest = hashlib.sha256()
    for name, weight in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(f"{name}{tuple(weight.shape)}".encode() + weight.signbit().cpu().numpy().tobytes())
    shown = [f"{name}={value}" for name, value in latent_scales(vae).items()]
    return " ".join([*shown, f"encoder={digest.hexdigest()[:16]}"])


@torch.no_grad()
def encode_images(vae: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and deviations (B, C, h, w) of the latents of pixels (B, 3, H, W) in [-1, 1]."""
    posterior = vae.encode(pixels).latent_dist
    offset, scale = _offset_and_scale(vae, pixels.device)
    return (posterior.mean - offset) * scale, posterior.std * scale


@torch.no_grad()
def decode(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W), in [-1, 1] or a little beyond, of latents (B, C, h, w).

    Everything is float32, whatever the VAE's precision and an autocast around: SDXL's overflows to black in float16.
    """
    dtype = vae.dtype
    offset, scale = _offset_and_scale(vae, latents.device)
    unscaled = latents.float() / scale + offset
    pixels_per_image = latents.shape[-2] * latents.shape[-1] * latent_factor(vae) ** 2
    chunks = unscaled.split(max(1, MAX_DECODE_PIXELS // pixels_per_image))
    if dtype != torch.float32:
        vae.to(torch.float32)
    try:
        with torch.autocast(latents.device.type, enabled=False):
            return torch.cat([vae.decode(chunk, return_dict=False)[0] for chunk in chunks])
    finally:
        if dtype != torch.float32:
            vae.to(dtype)


def decode_latents(pipeline: DiffusionPipeline, latents: torch.Tensor) -> tuple[list[Image.Image], list[bool]]:
    """B RGB images of final latents (B, C, h, w), and for each whether latent and decoded pixels were finite."""
    decoded = decode(pipeline.vae, latents)
    finite = decoded.isfinite().flatten(1).all(1) & latents.isfinite().flatten(1).all(1)
    images = pipeline.image_processor.postprocess(torch.nan_to_num(decoded), output_type="pil")
    return images, finite.tolist()


def _offset_and_scale(vae: torch.nn.Module, device: torch.device) -> tuple[Any, Any]:
    """Of (z - offset) * scale, numbers or (1, C, 1, 1)."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:  # as diffusers' pipelines, which take both or neither
        return config.get("shift_factor") or 0.0, config.scaling_factor
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
    return mean, config.scaling_factor / std
