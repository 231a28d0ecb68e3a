# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""From a dataset of images, captions and advantages to tensors: every image and caption is encoded once.

The result is cached under a name made of all that determines it: encoder weights, caption tokens, pixels, resolution,
crop. Another learning rate, or SFT on the same data, finds it; a seed counts only where it chooses the rows.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from ..core.files import atomic_write_bytes
from ..core.records import derive_seed
from ..errors import UserError
from ..models.checks import warn_of_cut_prompts
from ..models.family import Components, Family
from ..models.latents import encode_images, latent_scales, latent_shape, vae_fingerprint
from ..objectives.base import Objective
from .pictures import as_pictures, as_vae_input, crop_image, read_pictures
from .rows import TrainingData
from .settings import DataSettings


logger = logging.getLogger(__name__)

_CACHE_FORMAT = 3
_HASH = "sha256"  # of the tensors, in the metadata of the cache
_PROMPTS_A_BATCH = 32
_PIXELS_A_BATCH = 8 * 512 * 512  # bounds the VAE's activations: 8 images of 512 px, 2 of 1024 px
_CHECKED_LATENTS = 4  # rows encoded to see whether latents of unknown origin fit
# Of the latents' own root mean square. What a VAE makes of its own pictures is 0.1 to 0.4 off, more with more guidance
# (LOG.md); latents of another VAE are at least 1 off, and 1.4 at the same scale.
_MAX_DISTANCE = 0.7


def prepare_training_data(
    dataset: Dataset,
    family: Family,
    components: Components,
    settings: DataSettings,
    objective: Objective | None = None,
) -> TrainingData:
    """Encodes a dataset with VAE and text encoders on the device of `components`, or finds it in the cache.

    The settings name columns, crop, subset and cache. The objective turns advantages into weights; without it they are 1.

    Raises:
        UserError: if a column is missing, or a row has no caption, no picture, no finite advantage, or a latent of
            another shape or VAE.
    """
    settings = settings.for_model(family, components)
    check_columns(dataset, settings)
    if settings.max_train_samples is not None and settings.max_train_samples < len(dataset):
        dataset = dataset.shuffle(seed=settings.seed).select(range(settings.max_train_samples))
    if len(dataset) == 0:
        raise UserError(f"{settings.data_flag}: expected at least one row, found none")
    if settings.image_column in dataset.column_names:
        dataset = as_pictures(dataset, settings.image_column)
    if settings.use_generated_latents:
        _check_latents(dataset, components.vae, settings)
    weights = _row_weights(dataset, settings, objective)
    captions, prompt_rows = _distinct(read_captions(dataset, settings))
    warn_of_cut_prompts(components.pipeline, captions, "captions")

    name = _fingerprint(dataset, captions, family, components, settings)
    path = Path(settings.cache_dir or HF_HOME).expanduser() / "diffusers_craft" / f"{name}.safetensors"
    if (tensors := _read_cache(path)) is None:
        tensors = _encode(dataset, captions, family, components, settings)
        atomic_write_bytes(path, save(tensors, metadata={_HASH: _hash(tensors)}))
    return TrainingData(
        latents=tensors["latents"],
        latent_stds=tensors.get("latent_stds"),
        prompts=_with_prefix(tensors, "prompts."),
        prompt_rows=prompt_rows,
        sizes=_with_prefix(tensors, "sizes."),
        weights=weights,
        captions=tuple(captions),
    )


def prepare_prompt_data(
    captions: Sequence[str], family: Family, components: Components, settings: DataSettings
) -> TrainingData:
    """n captions alone, for objectives that make their own images: the latents are zeros, the sizes those of a square."""
    settings, (distinct, prompt_rows) = settings.for_model(family, components), _distinct(captions)
    warn_of_cut_prompts(components.pipeline, distinct, "captions")
    shape = latent_shape(components.vae, settings.resolution)
    return TrainingData(
        latents=torch.zeros(1, 1, *shape).expand(1, len(captions), *shape),
        latent_stds=None,
        prompts={name: value.cpu() for name, value in _encode_captions(distinct, family, components).items()},
        prompt_rows=prompt_rows,
        sizes=_square_sizes(len(captions), family, settings.resolution),
        weights=torch.ones(len(captions)),
        captions=tuple(distinct),
    )


def check_columns(dataset: Dataset, settings: DataSettings) -> None:
    """Raises a `UserError` unless the columns of captions and of images or latents are there."""
    for flag in ("caption_column", "latent_column" if settings.use_generated_latents else "image_column"):
        check_column(dataset, settings, flag)


def check_column(dataset: Dataset, settings: DataSettings, flag: str) -> None:
    """Raises a `UserError` unless the dataset has the column that a flag names."""
    if (name := getattr(settings, flag)) not in dataset.column_names:
        found = ", ".join(dataset.column_names)
        raise UserError(f"--{flag}: expected one of the dataset's columns ({found}), found {name!r}")


def read_captions(dataset: Dataset, settings: DataSettings) -> list[str]:
    """(n,) texts that training conditions on."""
    check_column(dataset, settings, "caption_column")
    column = settings.caption_column
    captions = list(dataset[column])
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise UserError(f"--caption_column: expected text in column {column!r}, found {caption!r} in row {row}")
    if blank := sum(not caption.strip() for caption in captions):
        logger.warning(f"--caption_column: {blank} of {len(captions)} captions are empty")
    return captions


def _distinct(captions: Sequence[str]) -> tuple[list[str], torch.Tensor]:
    """The distinct captions in their order, and the (n,) int64 place of each caption among them."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    return list(places), torch.tensor([places[caption] for caption in captions])


def _row_weights(dataset: Dataset, settings: DataSettings, objective: Objective | None) -> torch.Tensor:
    """(n,) weights of the loss: what the objective makes of the advantages; ones for a dataset that has none."""
    if objective is None or not objective.uses_advantages:
        return torch.ones(len(dataset))
    if settings.advantage_column not in dataset.column_names:
        logger.warning("The dataset has no column %r: training as SFT.", settings.advantage_column)
        return torch.ones(len(dataset))
    values = list(dataset[settings.advantage_column])
    for row, value in enumerate(values):
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"--advantage_column: expected finite numbers, found {value!r} in row {row}")
    advantages = torch.tensor(values, dtype=torch.float32)
    weights = objective.row_weights(advantages)
    if not weights.any():
        raise UserError(f"--advantage_column: expected a row that is not 0, found {len(weights)} zeros")
    return weights


def _encode(
    dataset: Dataset, captions: list[str], family: Family, components: Components, settings: DataSettings
) -> dict[str, torch.Tensor]:
    if settings.use_generated_latents:
        tensors = {"latents": _read_latents(dataset, components.vae, settings)}
        sizes = _square_sizes(len(dataset), family, settings.resolution)
    else:
        tensors, sizes = _encode_images(dataset, family, components.vae, settings)
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


def _square_sizes(count: int, family: Family, resolution: int) -> dict[str, torch.Tensor]:
    """Conditioning on the sizes of images that were never cropped."""
    square = torch.full((count, 2), resolution)
    return family.size_conditioning(square, torch.zeros_like(square), square)


def _encode_images(
    dataset: Dataset, family: Family, vae: torch.nn.Module, settings: DataSettings
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scaled posterior means and deviations (F, n, C, h, w), in float32 since SDXL's VAE overflows in float16."""
    resolution = settings.resolution
    latent_shape(vae, resolution)
    batch_size = max(1, _PIXELS_A_BATCH // resolution**2)
    pictures = read_pictures(dataset, settings.image_column)
    means, stds, originals, corners = [], [], [], []
    for start in tqdm(range(0, len(dataset), batch_size), desc="Encoding images", disable=len(dataset) < 50):
        crops = []
        for row in range(start, min(start + batch_size, len(dataset))):
            seed = derive_seed(0, "crop", row)  # not of --seed: runs that differ in their seed share the cache
            crop, original, corner = crop_image(next(pictures), resolution, settings.center_crop, seed)
            crops.append(crop)
            originals.append(original)
            corners.append(corner)
        pixels = as_vae_input(crops, vae.device)
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


def _read_latents(dataset: Dataset, vae: torch.nn.Module, settings: DataSettings) -> torch.Tensor:
    """(1, n, C, h, w) stored latents: what the base model made, already scaled, so without a posterior."""
    expected, latents = latent_shape(vae, settings.resolution), []
    for row, latent in enumerate(dataset[settings.latent_column]):
        found = () if latent is None else np.shape(latent)
        if found != expected:
            wanted = f"expected shape {expected} at --resolution {settings.resolution}"
            raise UserError(f"--use_generated_latents: {wanted}, found {found} in row {row}")
        latents.append(np.asarray(latent, dtype=np.float32))
    return torch.from_numpy(np.stack(latents))[None]


def _check_latents(dataset: Dataset, vae: torch.nn.Module, settings: DataSettings) -> None:
    """Refuses stored latents of another VAE, by the fingerprint that builds keep in a column of that name with `_vae`.

    Without it the images of a few rows are encoded; without images either nothing can be checked, and the log says so.
    """
    origin = f"{settings.latent_column}_vae"
    if origin in dataset.column_names:
        own, found = vae_fingerprint(vae), set(dataset[origin])
        if others := found - {own}:
            other = min(others, key=str)
            raise UserError(f"--use_generated_latents: expected latents of this model's VAE ({own}), found {other}")
    elif settings.image_column in dataset.column_names:
        rows = dataset.select(range(min(_CHECKED_LATENTS, len(dataset))))
        stored, pictures = _read_latents(rows, vae, settings)[0], read_pictures(rows, settings.image_column)
        crops = [crop_image(picture, settings.resolution, True, 0)[0] for picture in pictures]
        encoded = torch.cat([encode_images(vae, as_vae_input([crop], vae.device))[0] for crop in crops])
        distance = ((encoded.cpu() - stored).square().mean() / stored.square().mean()).sqrt().item()
        if not distance < _MAX_DISTANCE:
            raise UserError(
                "--use_generated_latents: expected latents of this model's VAE, which encoding the images gives within"
                f" {_MAX_DISTANCE} of their size, found {distance:.2f} in the first rows"
            )
    else:
        logger.warning("--use_generated_latents: no column %r and no images, the VAE is taken on trust.", origin)


def _fingerprint(
    dataset: Dataset, captions: list[str], family: Family, components: Components, settings: DataSettings
) -> str:
    options = {"format": _CACHE_FORMAT, "backbone": family.name, "resolution": settings.resolution}
    options |= {"tokens": components.tokens(captions), "zeros": components.zeroes_empty_prompt}
    options["generated"] = settings.use_generated_latents
    modules = components.encoders()
    if settings.use_generated_latents:
        pictures = (np.asarray(latent, dtype=np.float32) for latent in dataset[settings.latent_column])
    else:
        options |= {"scaling": latent_scales(components.vae), "flip": settings.random_flip}
        options["center_crop"] = settings.center_crop
        modules.append(components.vae)
        pictures = (np.asarray(image) for image in read_pictures(dataset, settings.image_column))
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    weights = (value.detach().cpu().numpy() for module in modules for value in module.state_dict().values())
    for array in chain(pictures, weights):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


def _read_cache(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors in a cache; `None` where there is none, or a broken one, which is thrown away with one line."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
        if _HASH not in about or about[_HASH] == _hash(tensors):  # earlier versions kept none
            return tensors
        problem: Exception | str = "a changed byte"
    except SafetensorError as error:
        problem = error
    logger.warning("--cache_dir: expected whole encodings in %s, found %s; they are made anew", path, problem)
    path.unlink()
    return None


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
