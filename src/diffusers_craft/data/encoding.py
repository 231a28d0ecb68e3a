# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""From a dataset of images, captions and advantages to tensors: every image and caption is encoded once.

The result is kept in a cache file whose name depends on all that determines it, and on nothing else: encoder weights,
caption tokens, pixels, resolution, crop. Another learning rate or seed, or SFT on the same data, finds it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file, save
from tqdm.auto import tqdm

from ..core.files import atomic_write_bytes
from ..core.records import derive_seed
from ..errors import UserError
from ..models.family import Components, Family
from ..models.latents import encode_images, latent_scales, latent_shape
from ..objectives.base import Objective
from .pictures import Pictures, as_vae_input, crop_image
from .rows import TrainingData
from .settings import DataSettings
from .stored_latents import check_latents, read_latents


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_CACHE_FORMAT = 3
_PROMPTS_A_BATCH = 32
_PIXELS_A_BATCH = 8 * 512 * 512  # bounds the VAE's activations: 8 images of 512 px, 2 of 1024 px


def prepare_training_data(
    dataset: "Dataset",
    family: Family,
    components: Components,
    settings: DataSettings,
    objective: Objective | None = None,
) -> TrainingData:
    """Encodes a dataset, or finds it in the cache.

    Args:
        dataset (`datasets.Dataset`): columns as named by `--image_column`, `--caption_column`, `--advantage_column`.
        family (`Family`): says how captions and sizes condition the UNet.
        components (`Components`): VAE and text encoders, on the device that encodes.
        settings (`DataSettings`): columns, crop, subset and cache.
        objective (`Objective`, *optional*): turns the advantages into weights; without it they are ones.

    Raises:
        UserError: if a column is missing, or a row has no caption, no picture, no finite advantage, or a latent of
            another shape or VAE.
    """
    check_column(dataset, settings, "caption_column")
    check_column(dataset, settings, "latent_column" if settings.use_generated_latents else "image_column")
    if settings.max_train_samples is not None and settings.max_train_samples < len(dataset):
        dataset = dataset.shuffle(seed=settings.seed).select(range(settings.max_train_samples))
    if len(dataset) == 0:
        raise UserError("--dataset_name: expected at least one row, found none")
    if settings.use_generated_latents:
        check_latents(dataset, components.vae, settings)
    weights = row_weights(dataset, settings, objective)
    captions = read_captions(dataset, settings)
    distinct = list(dict.fromkeys(captions))
    row_of = {caption: row for row, caption in enumerate(distinct)}

    path = (
        _cache_folder(settings.cache_dir)
        / f"{_fingerprint(dataset, distinct, family, components, settings)}.safetensors"
    )
    if path.is_file():
        tensors = load_file(path)
    else:
        tensors = _encode(dataset, distinct, family, components, settings)
        atomic_write_bytes(path, save(tensors))
    return TrainingData(
        latents=tensors["latents"],
        latent_stds=tensors.get("latent_stds"),
        prompts=_with_prefix(tensors, "prompts."),
        prompt_rows=torch.tensor([row_of[caption] for caption in captions]),
        sizes=_with_prefix(tensors, "sizes."),
        weights=weights,
        captions=tuple(distinct),
    )


def prepare_prompt_data(
    captions: Sequence[str], family: Family, components: Components, settings: DataSettings
) -> TrainingData:
    """Captions alone, for objectives that make their own images: the latents are zeros, the sizes those of a square.

    Args:
        captions (`Sequence[str]`): n captions; one row each.
        family (`Family`): says how captions and sizes condition the UNet.
        components (`Components`): VAE and text encoders, on the device that encodes.
        settings (`DataSettings`): columns, crop, subset and cache.
    """
    distinct = list(dict.fromkeys(captions))
    row_of = {caption: row for row, caption in enumerate(distinct)}
    shape = latent_shape(components.vae, settings.resolution)
    square = torch.full((len(captions), 2), settings.resolution)
    sizes = family.size_conditioning(square, torch.zeros_like(square), square)
    return TrainingData(
        latents=torch.zeros(1, 1, *shape).expand(1, len(captions), *shape),
        latent_stds=None,
        prompts={name: value.cpu() for name, value in _encode_captions(distinct, family, components).items()},
        prompt_rows=torch.tensor([row_of[caption] for caption in captions]),
        sizes=sizes,
        weights=torch.ones(len(captions)),
        captions=tuple(distinct),
    )


def row_weights(dataset: "Dataset", settings: DataSettings, objective: Objective | None) -> torch.Tensor:
    """(n,) weights of the loss: what the objective makes of the advantages; ones for a dataset that has none."""
    if objective is None or not objective.uses_advantages:
        return torch.ones(len(dataset))
    if settings.advantage_column not in dataset.column_names:
        logger.warning("The dataset has no column %r: training as SFT.", settings.advantage_column)
        return torch.ones(len(dataset))
    values = [float("nan") if value is None else float(value) for value in dataset[settings.advantage_column]]
    advantages = torch.tensor(values, dtype=torch.float32)
    wrong = (~advantages.isfinite()).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(f"--advantage_column: expected finite numbers, found {values[row]} in row {row}")
    weights = objective.row_weights(advantages)
    if not weights.any():
        raise UserError(f"--advantage_column: expected a row that is not 0, found {len(weights)} zeros")
    return weights


def _encode(
    dataset: "Dataset", captions: list[str], family: Family, components: Components, settings: DataSettings
) -> dict[str, torch.Tensor]:
    if settings.use_generated_latents:
        tensors = {"latents": read_latents(dataset, components.vae, settings)}
        square = torch.full((len(dataset), 2), settings.resolution)
        sizes = family.size_conditioning(square, torch.zeros_like(square), square)
    else:
        tensors, sizes = _encode_images(dataset, family, components, settings)
    prompts = _encode_captions(captions, family, components)
    tensors |= {f"prompts.{name}": value for name, value in prompts.items()}
    tensors |= {f"sizes.{name}": value for name, value in sizes.items()}
    return {name: value.cpu().contiguous() for name, value in tensors.items()}


def _encode_captions(captions: list[str], family: Family, components: Components) -> dict[str, torch.Tensor]:
    """Conditioning of the captions, and of the empty one in the last row."""
    parts = [
        family.encode_prompts(components, captions[start : start + _PROMPTS_A_BATCH])
        for start in range(0, len(captions), _PROMPTS_A_BATCH)
    ]
    parts.append(family.encode_empty_prompt(components))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _encode_images(
    dataset: "Dataset", family: Family, components: Components, settings: DataSettings
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scaled posterior means and deviations (F, n, C, h, w), in float32 since SDXL's VAE overflows in float16."""
    vae, resolution = components.vae, settings.resolution
    latent_shape(vae, resolution)
    batch_size = max(1, _PIXELS_A_BATCH // resolution**2)
    pictures = Pictures(dataset, settings.image_column)
    means, stds, originals, corners = [], [], [], []
    for start in tqdm(range(0, len(dataset), batch_size), desc="Encoding images", disable=len(dataset) < 50):
        rows = range(start, min(start + batch_size, len(dataset)))
        crops = [
            # Of the row alone, not of --seed: runs that differ in their seed share the cache.
            crop_image(pictures[row], resolution, settings.center_crop, derive_seed(0, "crop", row))
            for row in rows
        ]
        originals += [original for _, original, _ in crops]
        corners += [corner for _, _, corner in crops]
        pixels = as_vae_input([pixels for pixels, _, _ in crops], vae.device)
        views = [pixels, pixels.flip(3)] if settings.random_flip else [pixels]
        encoded = [encode_images(vae, view) for view in views]
        means.append(torch.stack([mean for mean, _ in encoded]))
        stds.append(torch.stack([std for _, std in encoded]))
    sides = [min(original) for original in originals]
    if small := sum(side < resolution for side in sides):
        words = "--resolution %d: %d of %d images are smaller (%d pixels and more) and were enlarged"
        logger.warning(words, resolution, small, len(sides), min(sides))
    latents = {"latents": torch.cat(means, dim=1), "latent_stds": torch.cat(stds, dim=1)}
    targets = torch.full((len(dataset), 2), resolution)
    return latents, family.size_conditioning(torch.tensor(originals), torch.tensor(corners), targets)


def check_column(dataset: "Dataset", settings: DataSettings, flag: str) -> None:
    """Raises a `UserError` unless the dataset has the column that a flag names."""
    if (name := getattr(settings, flag)) not in dataset.column_names:
        found = ", ".join(dataset.column_names)
        raise UserError(f"--{flag}: expected one of the dataset's columns ({found}), found {name!r}")


def read_captions(dataset: "Dataset", settings: DataSettings) -> list[str]:
    """(n,) texts that training conditions on."""
    check_column(dataset, settings, "caption_column")
    column = settings.caption_column
    captions = list(dataset[column])
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise UserError(f"--caption_column: expected text in column {column!r}, found {caption!r} in row {row}")
    return captions


def _fingerprint(
    dataset: "Dataset", captions: list[str], family: Family, components: Components, settings: DataSettings
) -> str:
    digest = hashlib.sha256()
    options = {"format": _CACHE_FORMAT, "backbone": family.name, "resolution": settings.resolution}
    options |= {
        "tokens": components.tokens(captions),
        "zeros": components.zeroes_empty_prompt,
        "generated": settings.use_generated_latents,
    }
    modules = components.encoders()
    if settings.use_generated_latents:
        pictures = (np.asarray(latent, dtype=np.float32) for latent in dataset[settings.latent_column])
    else:
        options |= {"scaling": latent_scales(components.vae), "flip": settings.random_flip}
        options |= {"center_crop": settings.center_crop}
        modules.append(components.vae)
        pictures = (np.asarray(image) for image in Pictures(dataset, settings.image_column))
    digest.update(json.dumps(options, sort_keys=True).encode())
    _update(digest, pictures)
    for module in modules:
        _update(digest, (value.detach().cpu().numpy() for value in module.state_dict().values()))
    return digest.hexdigest()[:32]


def _update(digest: "hashlib._Hash", arrays: Iterable[np.ndarray]) -> None:
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))


def _cache_folder(cache_dir: str | None) -> Path:
    return Path(os.path.expanduser(cache_dir or HF_HOME)) / "diffusers_craft"


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
