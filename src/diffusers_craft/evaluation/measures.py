# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the alarms look at: saturation, contrast, high-frequency energy and an embedding of every image."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm.auto import tqdm

from ..core.workdir import Stage


THUMBNAIL = 16  # side in pixels of the thumbnails that are embeddings where there is no CLIP
STATISTICS_SIZE = 128  # pixels; larger images are reduced before colours are measured
CROP = 512  # pixels; high frequencies are measured in the centre, at the image's own resolution
CLIP_BATCH = 16  # images

STATISTICS_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), False),
        *(pa.field(name, pa.float64()) for name in ("saturation", "contrast", "high_frequency")),
        pa.field("embedding", pa.list_(pa.float32())),
    ]
)
Embed = Callable[[Sequence[Image.Image]], np.ndarray]  # B images -> (B, d)


@dataclass
class ImageStatistics:
    """What the alarms look at, one row an image; NaN rows for images that are missing or not valid.

    Args:
        saturation (`np.ndarray`): (n,) mean of HSV saturation times value, in [0, 1]; the factor keeps the noisy
            hue of dark pixels out.
        contrast (`np.ndarray`): (n,) standard deviation of luminance (Rec. 601), in [0, 0.5].
        high_frequency (`np.ndarray`): (n,) share of the luminance's energy in differences of neighbouring pixels:
            their mean square over twice the variance, i.e. 1 - autocorrelation at a distance of one pixel. 0 for
            smooth pictures, 1 for white noise.
        embeddings (`np.ndarray`): (n, d) whose Euclidean distance says how different two images look.
        images_per_prompt (`int`): rows of one prompt, which follow each other.
    """

    saturation: np.ndarray
    contrast: np.ndarray
    high_frequency: np.ndarray
    embeddings: np.ndarray
    images_per_prompt: int = 1

    @property
    def valid(self) -> np.ndarray:
        """(n,) bool: rows of images that could be measured."""
        return np.isfinite(self.saturation)

    @property
    def groups(self) -> np.ndarray:
        """(n,) int: which prompt a row belongs to."""
        return np.arange(len(self.saturation)) // self.images_per_prompt


def thumbnail_embedding(images: Sequence[Image.Image]) -> np.ndarray:
    """Images of any size at 16 x 16 RGB pixels, scaled so that distances are root mean square differences in [0, 1].

    Returns:
        `np.ndarray`: (B, 768).
    """
    box = Image.Resampling.BOX
    small = [np.asarray(i.convert("RGB").resize((THUMBNAIL, THUMBNAIL), box), dtype=np.float64) for i in images]
    return np.array(small).reshape(len(images), -1) / 255 / np.sqrt(3 * THUMBNAIL**2)


def clip_embedding(tower: Callable[[list[Image.Image]], Any]) -> Embed:
    """Unit-length embeddings of a CLIP image tower; their distance is sqrt(2 - 2 cosine).

    Args:
        tower (`Callable`): B images to (B, d) tensor, e.g. the `tower` of the rewards `aesthetic` and `clip_score`.
    """

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            parts = [tower(list(images[i : i + CLIP_BATCH])).cpu().numpy() for i in range(0, len(images), CLIP_BATCH)]
        vectors = np.concatenate(parts).astype(np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return embed


def image_statistics(
    images: Iterable[Image.Image | None], embed: Embed = thumbnail_embedding, images_per_prompt: int = 1
) -> ImageStatistics:
    """Measures images one at a time, so that a generator can decode them on the way.

    Args:
        images (`Iterable[PIL.Image.Image | None]`): n images; `None` gives a NaN row.
        embed (`Callable`, *optional*): B images to (B, d) embeddings; by default 16 x 16 thumbnails.
        images_per_prompt (`int`, *optional*, defaults to 1): images of one prompt, which follow each other.

    Returns:
        `ImageStatistics`: n rows.
    """
    numbers, embeddings = [], []
    for image in images:
        numbers.append(np.full(3, np.nan) if image is None else _measure(image))
        embeddings.append(None if image is None else embed([image])[0])
    return _statistics(np.array(numbers).reshape(-1, 3), embeddings, images_per_prompt)


def _statistics(numbers: np.ndarray, embeddings: Sequence[Any], images_per_prompt: int) -> ImageStatistics:
    width = next((len(row) for row in embeddings if row is not None), 1)
    table = np.array([np.full(width, np.nan) if row is None else row for row in embeddings]).reshape(-1, width)
    return ImageStatistics(*numbers.T, table, images_per_prompt)


def _measure(image: Image.Image) -> np.ndarray:
    """(3,): saturation, contrast, high-frequency energy."""
    image = image.convert("RGB")
    left, top = max(0, image.width - CROP) // 2, max(0, image.height - CROP) // 2
    crop = image.crop((left, top, left + min(CROP, image.width), top + min(CROP, image.height)))
    image.thumbnail((STATISTICS_SIZE, STATISTICS_SIZE))
    pixels = np.asarray(image, dtype=np.float64) / 255  # (h, w, 3)
    saturation = (pixels.max(-1) - pixels.min(-1)).mean()  # HSV: S = (max - min) / max, V = max
    return np.array([saturation, _luminance(pixels).std(), _high_frequency(_luminance(np.asarray(crop) / 255))])


def _luminance(pixels: np.ndarray) -> np.ndarray:
    return pixels @ [0.299, 0.587, 0.114]


def _high_frequency(luminance: np.ndarray) -> float:
    variance = luminance.var()
    if variance < 1e-8:
        return 0.0
    squares = [np.square(np.diff(luminance, axis=axis)) for axis in (0, 1)]
    return float(np.mean([square.mean() for square in squares if square.size]) / (2 * variance))


def decode_images(rows: Iterable[Mapping[str, Any]]) -> Iterator[Image.Image | None]:
    """The pictures of rows with `image`, a picture or its bytes, and maybe `valid`; `None` where they are not valid."""
    for row in rows:
        image = row["image"]
        if not row.get("valid", True):
            yield None
        else:
            yield (Image.open(io.BytesIO(image["bytes"])) if isinstance(image, Mapping) else image).convert("RGB")


def measure_images(images: Stage, stage: Stage, embed: Embed = thumbnail_embedding) -> None:
    """Measures this rank's share of a model's images and waits for the other ranks.

    Args:
        images (`Stage`): rows of `CANDIDATE_SCHEMA`.
        stage (`Stage`): receives rows of `STATISTICS_SCHEMA`; shards of the same rows as those of `images`.
        embed (`Callable`, *optional*): B images to (B, d) embeddings.
    """
    shards = stage.share()
    for shard in tqdm(shards, desc="Measuring images", unit="shard", disable=not shards):
        rows, numbers = stage.rows(shard), np.full((len(stage.rows(shard)), 3), np.nan)
        pictures = list(decode_images(images.read_shard(shard, ["image", "valid"]).to_pylist()))
        valid = [i for i, picture in enumerate(pictures) if picture is not None]
        embeddings: list[Any] = [None] * len(pictures)
        if valid:
            for i, embedding in zip(valid, embed([pictures[i] for i in valid])):
                numbers[i], embeddings[i] = _measure(pictures[i]), embedding.astype(np.float32)
        columns = [np.asarray(rows), *numbers.T, pa.array(embeddings, pa.list_(pa.float32()))]
        stage.write(shard, pa.table(dict(zip(STATISTICS_SCHEMA.names, columns)), schema=STATISTICS_SCHEMA))
    stage.finish()


def read_statistics(stage: Stage, images_per_prompt: int = 1) -> ImageStatistics:
    """What `measure_images` wrote."""
    table = stage.read()
    numbers = np.stack([table[name].to_numpy() for name in ("saturation", "contrast", "high_frequency")], axis=1)
    return _statistics(numbers, table["embedding"].to_pylist(), images_per_prompt)
