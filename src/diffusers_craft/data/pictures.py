# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a dataset, one at a time, and the squares that training cuts out of them."""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..errors import UserError


if TYPE_CHECKING:
    from datasets import Dataset

# What Pillow raises on damaged files, and the system on missing ones.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class Pictures(Sequence):
    """The RGB pictures of a dataset's column, decoded when they are asked for; no other column is.

    Args:
        dataset (`datasets.Dataset`): n rows.
        column (`str`): with the pictures.
    """

    def __init__(self, dataset: "Dataset", column: str) -> None:
        self._dataset, self._column = dataset.select_columns([column]), column

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> Image.Image:
        """The picture of a row.

        Raises:
            UserError: if there is none, or it is broken; names row and file.
        """
        if row >= len(self):
            raise IndexError(row)
        try:
            image = self._dataset[row][self._column]
            if isinstance(image, Image.Image):
                return image.convert("RGB")
        except _BROKEN as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(self._complaint(row, f"one that cannot be read ({reason:.200})")) from error
        raise UserError(self._complaint(row, repr(image)[:60]))

    def _complaint(self, row: int, found: str) -> str:
        from datasets import Image as ImageFeature

        place = f"row {row}"
        if isinstance(self._dataset.features[self._column], ImageFeature):
            encoded = self._dataset.cast_column(self._column, ImageFeature(decode=False))[row][self._column]
            place += f" ({encoded['path']})" if encoded and encoded["path"] else ""
        return f"--image_column: expected a picture in column {self._column!r}, {place}, found {found}"


def crop_image(
    image: Image.Image, resolution: int, center_crop: bool, seed: int
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Scales the shorter side to `resolution` and cuts a square out of the longer one.

    Args:
        image (`PIL.Image.Image`): any mode and size.
        resolution (`int`): side of the square, pixels.
        center_crop (`bool`): cut the centre, else a place that `seed` chooses.
        seed (`int`): of the place.

    Returns:
        (resolution, resolution, 3) uint8 pixels, the original (height, width), the crop's (top, left).
    """
    width, height = image.size
    scale = resolution / min(width, height)
    scaled = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    image = image.convert("RGB")
    if scaled != (width, height):
        image = image.resize(scaled, Image.Resampling.LANCZOS)
    room = (scaled[1] - resolution, scaled[0] - resolution)
    if center_crop:
        top, left = room[0] // 2, room[1] // 2
    else:
        top, left = (seed % (room[0] + 1)), (seed // (room[0] + 1) % (room[1] + 1))
    pixels = np.asarray(image)[top : top + resolution, left : left + resolution]
    return pixels, (height, width), (top, left)


def as_vae_input(crops: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """(B, 3, H, W) float32 in [-1, 1] out of B uint8 crops (H, W, 3)."""
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return pixels.to(device, torch.float32) / 127.5 - 1.0
