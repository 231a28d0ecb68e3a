# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Which VAE a latent belongs to."""

import hashlib

import torch


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
