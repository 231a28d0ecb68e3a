# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Which VAE a latent belongs to."""

import hashlib

import torch
from diffusers import DiffusionPipeline
from PIL import Image


_SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def vae_fingerprint(vae: torch.nn.Module) -> str:
    """A line that two VAEs share if their latents mean the same: the same encoder and the same scale.

    Decoders play no part: VAEs with an improved decoder keep the latents of the original. Of the encoder's weights only
    the signs count, which no conversion between fp32, fp16 and bf16 changes: a build that generates in half precision
    and a training that loads the same VAE in float32 agree.

    Args:
        vae (`torch.nn.Module`): e.g. a pipeline's `AutoencoderKL`.

    Returns:
        `str`: such as `scaling_factor=0.18215 encoder=0f1e2d3c4b5a6978`.
    """
    digest = hashlib.sha256()
    for name, weight in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(f"{name}{tuple(weight.shape)}".encode() + weight.signbit().cpu().numpy().tobytes())
    scales = {name: vae.config.get(name) for name in _SCALES}
    shown = [f"{name}={value}" for name, value in scales.items() if value is not None]
    return " ".join([*shown, f"encoder={digest.hexdigest()[:16]}"])


MAX_DECODE_PIXELS = 1024 * 1024  # pixels decoded by one call of the VAE in float32


@torch.no_grad()
def decode_latents(pipeline: DiffusionPipeline, latents: torch.Tensor) -> tuple[list[Image.Image], list[bool]]:
    """Decodes final latents in float32 (half-precision VAEs overflow to black images).

    Args:
        pipeline (`DiffusionPipeline`): holds the VAE and the image processor.
        latents (`torch.Tensor`): (B, C, h, w) in the UNet's scale.

    Returns:
        `tuple`: B RGB images, and for each whether latent and decoded pixels were finite.
    """
    vae, dtype = pipeline.vae, pipeline.vae.dtype
    scaled = latents.float() / vae.config.scaling_factor
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(x, device=scaled.device).view(1, -1, 1, 1) for x in (mean, std))
        scaled = scaled * std + mean
    pixels_per_image = scaled.shape[-2] * scaled.shape[-1] * pipeline.vae_scale_factor**2
    chunks = scaled.split(max(1, MAX_DECODE_PIXELS // pixels_per_image))
    if dtype != torch.float32:
        vae.to(torch.float32)
    try:
        decoded = torch.cat([vae.decode(chunk, return_dict=False)[0] for chunk in chunks])
    finally:
        if dtype != torch.float32:
            vae.to(dtype)
    finite = decoded.isfinite().flatten(1).all(1) & latents.isfinite().flatten(1).all(1)
    images = pipeline.image_processor.postprocess(torch.nan_to_num(decoded), output_type="pil")
    return images, finite.tolist()
