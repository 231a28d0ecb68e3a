# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Training on the latents that a build kept (`--use_generated_latents`), if they are those of the model's VAE."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import UserError
from ..models.latents import encode_images, latent_shape, vae_fingerprint
from .pictures import Pictures, as_vae_input, crop_image
from .settings import DataSettings


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_ROWS = 4  # encoded to see whether latents of unknown origin fit
# Of the latents' own root mean square. What a VAE makes of its own pictures is 0.1 to 0.4 off, more with more guidance
# (LOG.md); latents of another VAE are at least 1 off, and 1.4 at the same scale.
_MAX_DISTANCE = 0.7


def read_latents(dataset: "Dataset", vae: torch.nn.Module, settings: DataSettings) -> torch.Tensor:
    """(1, n, C, h, w) stored latents: what the base model made, already scaled, so without a posterior.

    Raises:
        UserError: if one has not the shape that the VAE gives at `--resolution`.
    """
    expected = latent_shape(vae, settings.resolution)
    rows = [_as_tensor(latent, expected, row, settings) for row, latent in enumerate(dataset[settings.latent_column])]
    return torch.stack(rows)[None]


def _as_tensor(latent: Any, expected: tuple[int, ...], row: int, settings: DataSettings) -> torch.Tensor:
    found = () if latent is None else np.shape(latent)
    if found != expected:
        wanted = f"expected shape {expected} at --resolution {settings.resolution}"
        raise UserError(f"--use_generated_latents: {wanted}, found {found} in row {row}")
    return torch.as_tensor(np.asarray(latent, dtype=np.float32))


def check_latents(dataset: "Dataset", vae: torch.nn.Module, settings: DataSettings) -> None:
    """Refuses stored latents of another VAE.

    Builds keep the VAE's fingerprint beside the latents, in the column of that name with `_vae`. Without it the images of
    a few rows are encoded; without images either, nothing can be checked, and the log says so.

    Args:
        dataset (`datasets.Dataset`): with the column `--latent_column`.
        vae (`torch.nn.Module`): the model's.
        settings (`DataSettings`): names the column.

    Raises:
        UserError: if the latents are not this VAE's, or have another shape.
    """
    origin = f"{settings.latent_column}_vae"
    if origin in dataset.column_names:
        own, found = vae_fingerprint(vae), set(dataset[origin])
        if others := found - {own}:
            other = min(others, key=str)
            raise UserError(f"--use_generated_latents: expected latents of this model's VAE ({own}), found {other}")
    elif settings.image_column in dataset.column_names:
        distance = _distance_to_encoded(dataset.select(range(min(_ROWS, len(dataset)))), vae, settings)
        if not distance < _MAX_DISTANCE:
            raise UserError(
                "--use_generated_latents: expected latents of this model's VAE, which encoding the images gives within"
                f" {_MAX_DISTANCE} of their size, found {distance:.2f} in the first rows"
            )
    else:
        logger.warning("--use_generated_latents: no column %r and no images, the VAE is taken on trust.", origin)


def _distance_to_encoded(rows: "Dataset", vae: torch.nn.Module, settings: DataSettings) -> float:
    """Root mean square of encoded image minus stored latent, over that of the latents."""
    stored = read_latents(rows, vae, settings)[0]
    crops = [crop_image(image, settings.resolution, True, 0)[0] for image in Pictures(rows, settings.image_column)]
    encoded = torch.cat([encode_images(vae, as_vae_input([crop], vae.device))[0] for crop in crops])
    difference = encoded.cpu() - stored
    return (difference.square().mean() / stored.square().mean()).sqrt().item()
