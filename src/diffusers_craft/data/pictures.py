# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a dataset, one at a time, and the squares that training cuts out of them."""

import os
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset, Value
from datasets import Image as ImageFeature
from PIL import Image

from ..errors import UserError


_THIN = 4  # sides' ratio beyond which only the square is scaled
# What Pillow raises on damaged files, and the system on missing ones.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, Image.DecompressionBombError)


def read_pictures(dataset: Dataset, column: str) -> Iterator[Image.Image]:
    """The RGB pictures of a column in order, decoded when their turn comes; no other column is.

    One that is missing or broken is a `UserError` that names row and file.
    """
    dataset = dataset.select_columns([column])
    for row in range(len(dataset)):
        cause = None
        try:
            image = dataset[row][column]
            found = repr(image)[:60]
            image = as_rgb(image) if isinstance(image, Image.Image) else None
        except _BROKEN as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            image, found, cause = None, f"one that cannot be read ({reason:.200})", error
        if image is None:
            place = f"row {row}"
            if isinstance(dataset.features[column], ImageFeature):
                encoded = dataset.cast_column(column, ImageFeature(decode=False))[row][column]
                place += f" ({encoded['path']})" if encoded and encoded["path"] else ""
            words = f"--image_column: expected a picture in column {column!r}, {place}, found {found}"
            raise UserError(words) from cause
        yield image


def as_pictures(dataset: Dataset, column: str) -> Dataset:
    """The dataset with a column of pictures: pandas and pyarrow store them as bytes, structs or paths."""
    feature = dataset.features[column]
    if isinstance(feature, dict):
        encoded = "bytes" in feature
    else:
        encoded = getattr(feature, "dtype", None) in ("binary", "large_binary")
        if getattr(feature, "dtype", None) in ("string", "large_string") and len(dataset):
            encoded = os.path.isfile(os.path.expanduser(dataset[0][column] or ""))  # false for texts of any length
    if not encoded:
        return dataset
    if not isinstance(feature, dict):  # older versions of pyarrow know no way from large_binary
        dataset = dataset.cast_column(column, Value(feature.dtype.removeprefix("large_")))
    return dataset.cast_column(column, ImageFeature())


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture in RGB as it is seen: 16-bit greys scaled, where Pillow cuts them at 255; what is transparent is white.

    A picture of floats is a `ValueError`: its file does not say which numbers are black and white.
    """
    if image.mode == "F":
        raise ValueError("a picture of floats, expected 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"a picture of {values.min()} to {values.max()}, expected 8 or 16 bits")
        # A file of 32 bits whose numbers are bytes stays as it is.
        scale = 1 if image.mode == "I" and values.max() <= 255 else 257
        return Image.fromarray(np.round(values / scale).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data or (image := image.convert("RGBA")).getextrema()[3] == (255, 255):
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def crop_image(
    image: Image.Image, resolution: int, center_crop: bool, seed: int
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Scales the shorter side to `resolution` and cuts a square out: at the centre, else at a place that `seed` chooses.

    Returns (resolution, resolution, 3) uint8 pixels, the original (height, width), the crop's (top, left).
    """
    width, height = image.size
    scale = resolution / min(width, height)
    scaled = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    room = (scaled[1] - resolution, scaled[0] - resolution)
    if center_crop:
        top, left = room[0] // 2, room[1] // 2
    else:
        top, left = (seed % (room[0] + 1)), (seed // (room[0] + 1) % (room[1] + 1))
    image = image.convert("RGB")
    if max(scaled) > _THIN * resolution:  # scaled as a whole it may be gigabytes
        across, down = width / scaled[0], height / scaled[1]
        box = (left * across, top * down, (left + resolution) * across, (top + resolution) * down)
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
        return np.asarray(image), (height, width), (top, left)
    if scaled != (width, height):
        image = image.resize(scaled, Image.Resampling.LANCZOS)
    pixels = np.asarray(image)[top : top + resolution, left : left + resolution]
    return pixels, (height, width), (top, left)


def as_vae_input(crops: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """(B, 3, H, W) float32 in [-1, 1] out of B uint8 crops (H, W, 3)."""
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return pixels.to(device, torch.float32) / 127.5 - 1.0
