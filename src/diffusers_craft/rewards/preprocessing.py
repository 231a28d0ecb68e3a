# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images to tensors, as CLIP-like rewards take them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; transparency is dropped, as the models' own processors do; 16-bit images are scaled, not clipped."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64)
        sixteen_bit = image.mode != "I" or values.max(initial=0) > 255  # older Pillow opens 16-bit PNGs as "I"
        return Image.fromarray((values // 256 if sixteen_bit else values).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


def normalize_pixels(pixels: torch.Tensor, mean: tuple = CLIP_MEAN, std: tuple = CLIP_STD) -> torch.Tensor:
    """Subtracts the mean and divides by the deviation of each channel of a (B, 3, H, W) tensor."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pixels - mean) / std


def fit_and_pad(image: Image.Image, size: int) -> torch.Tensor:
    """hpsv2's `ResizeMaxSize`: the longest side to `size` (bicubic, overshoots [0, 1]), padded with black."""
    pixels = to_tensor(to_rgb(image))
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    if scale != 1:  # antialiasing is pinned, because torchvision's default for tensors changed over versions
        new_size = tuple(max(round(side * scale), 1) for side in (height, width))
        pixels = F.interpolate(pixels[None], new_size, mode="bicubic", align_corners=False, antialias=True)[0]
    # To (3, size, size), also where the longest side is `size` already, which hpsv2 forgets.
    rows, columns = size - pixels.shape[1], size - pixels.shape[2]
    return F.pad(pixels, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def crop_center(image: Image.Image, size: int, crop: int, half_even: bool = False) -> torch.Tensor:
    """CLIP's geometry: the short side to `size` (bicubic), then the central square: (3, crop, crop) in [0, 1]."""
    image = to_rgb(image)
    width, height = image.size
    short = min(width, height)
    image = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
    # Of an odd margin, transformers' processors round the half down, and torchvision's to even.
    margins = (image.width - crop, image.height - crop)
    left, top = (round(margin / 2) if half_even else margin // 2 for margin in margins)
    return to_tensor(image.crop((left, top, left + crop, top + crop)))


@dataclass(frozen=True)
class ClipProcessor:
    """Image preprocessing as a `preprocessor_config.json` describes it; CLIP's own values without that file."""

    size: int = 224
    crop: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    half_even: bool = False  # see `crop_center`

    @classmethod
    def from_folder(cls, folder: Path, half_even: bool = False) -> "ClipProcessor":
        path = folder / "preprocessor_config.json"
        if not path.exists():
            return cls(half_even=half_even)
        config = json.loads(path.read_text())
        size, crop = config["size"], config["crop_size"]
        size = size["shortest_edge"] if isinstance(size, dict) else size
        crop = crop["height"] if isinstance(crop, dict) else crop
        return cls(size, crop, tuple(config["image_mean"]), tuple(config["image_std"]), half_even)

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """(B, 3, crop, crop) normalised pixels."""
        pixels = torch.stack([crop_center(image, self.size, self.crop, self.half_even) for image in images])
        return normalize_pixels(pixels, self.mean, self.std)
