# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the alarms look at: saturation, contrast, high-frequency energy and an embedding of every image.

A further measure is a function and a line in `MEASURES`, which also says when it is an alarm.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm.auto import tqdm

from ..core.workdir import Stage


THUMBNAIL = 16  # side in pixels of the thumbnails that are embeddings where there is no CLIP
STATISTICS_SIZE = 128  # pixels; larger images are reduced before colours are measured
CROP = 512  # pixels; high frequencies are measured in the centre, at the image's own resolution
CLIP_BATCH = 16  # images

Embed = Callable[[Sequence[Image.Image]], np.ndarray]  # B images -> (B, d)


def _luminance(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) to (h, w), Rec. 601."""
    return pixels @ [0.299, 0.587, 0.114]


def _saturation(small: np.ndarray, crop: np.ndarray) -> float:
    """Mean of HSV saturation times value, in [0, 1]; the factor keeps the noisy hue of dark pixels out."""
    return (small.max(-1) - small.min(-1)).mean()  # HSV: S = (max - min) / max, V = max


def _contrast(small: np.ndarray, crop: np.ndarray) -> float:
    """Standard deviation of luminance, in [0, 0.5]."""
    return _luminance(small).std()


def _high_frequency(small: np.ndarray, crop: np.ndarray) -> float:
    """1 - autocorrelation of the luminance at a distance of one pixel: 0 for smooth pictures, 1 for white noise."""
    luminance = _luminance(crop)
    variance = luminance.var()
    if variance < 1e-8:
        return 0.0
    squares = [np.square(np.diff(luminance, axis=axis)) for axis in (0, 1)]
    return float(np.mean([square.mean() for square in squares if square.size]) / (2 * variance))


class Measure(NamedTuple):
    """A number of a picture, and how far its mean may move before it is an alarm."""

    function: Callable[[np.ndarray, np.ndarray], float]  # of `small` and `crop`, see `_measure`
    limit: float  # relative change of the mean against the base's, in either direction


# CRAFT on the tiny world: saturation -3 to -5 %, contrast +30 to +36 %, high frequencies +1 to +7 %. Clean pictures with
# colours enhanced by 1.6: saturation +46 %; blurred by 0.8 pixels: high frequencies -54 %; sharpened: +84 %.
MEASURES = {
    "saturation": Measure(_saturation, 0.30),
    "contrast": Measure(_contrast, 0.50),
    "high_frequency": Measure(_high_frequency, 0.50),
}
_NUMBERS = [(name, pa.float64()) for name in MEASURES]
STATISTICS_SCHEMA = pa.schema([pa.field("row", pa.int64(), False), *_NUMBERS, ("embedding", pa.list_(pa.float32()))])


@dataclass
class ImageStatistics:
    """What the alarms look at, one row per image; NaN rows for images that are missing or not valid."""

    measures: Mapping[str, np.ndarray]  # (n,) of each of `MEASURES`
    embeddings: np.ndarray  # (n, d) whose Euclidean distance says how different two images look
    images_per_prompt: int = 1  # rows of one prompt, which follow each other

    @property
    def valid(self) -> np.ndarray:
        """(n,) bool: rows of images that could be measured."""
        return np.isfinite(next(iter(self.measures.values())))

    @property
    def groups(self) -> np.ndarray:
        """(n,) int: which prompt a row belongs to."""
        return np.arange(len(self.embeddings)) // self.images_per_prompt


def thumbnail_embedding(images: Sequence[Image.Image]) -> np.ndarray:
    """Images at 16 x 16 pixels, (B, 768), scaled so that distances are root mean square differences in [0, 1]."""
    box = Image.Resampling.BOX
    small = [np.asarray(i.convert("RGB").resize((THUMBNAIL, THUMBNAIL), box), dtype=np.float64) for i in images]
    return np.array(small).reshape(len(images), -1) / 255 / np.sqrt(3 * THUMBNAIL**2)


def clip_embedding(reward: Any, images: Sequence[Image.Image]) -> np.ndarray:
    """Unit-length embeddings (B, d) of the CLIP `tower` of a reward; their distance is sqrt(2 - 2 cosine)."""
    import torch  # here, since metrics of one's own need none

    batches = [list(images[i : i + CLIP_BATCH]) for i in range(0, len(images), CLIP_BATCH)]
    with torch.inference_mode():
        vectors = np.concatenate([reward.tower(batch).cpu().numpy() for batch in batches]).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def image_statistics(
    images: Iterable[Image.Image | None], embed: Embed = thumbnail_embedding, images_per_prompt: int = 1
) -> ImageStatistics:
    """Measures images, all in memory; `None` gives a NaN row."""
    images = list(images)
    numbers, embeddings = (np.full((len(images), width), np.nan) for width in (len(MEASURES), 1))
    if valid := [i for i, image in enumerate(images) if image is not None]:
        found = embed([images[i] for i in valid])
        embeddings = np.full((len(images), found.shape[1]), np.nan)
        embeddings[valid], numbers[valid] = found, [_measure(images[i]) for i in valid]
    return ImageStatistics(dict(zip(MEASURES, numbers.T)), embeddings, images_per_prompt)


def _measure(image: Image.Image) -> np.ndarray:
    """The `MEASURES` (m,) of a picture: of all of it reduced, and of its centre at its own resolution, (h, w, 3)."""
    image = image.convert("RGB")
    left, top = max(0, image.width - CROP) // 2, max(0, image.height - CROP) // 2
    crop = image.crop((left, top, left + min(CROP, image.width), top + min(CROP, image.height)))
    image.thumbnail((STATISTICS_SIZE, STATISTICS_SIZE))
    small, crop = np.asarray(image, dtype=np.float64) / 255, np.asarray(crop) / 255
    return np.array([measure.function(small, crop) for measure in MEASURES.values()])


def decode_image(row: Mapping[str, Any]) -> Image.Image | None:
    """The picture of a row with `image`, a picture or its bytes, and maybe `valid`; `None` where it is not."""
    if not row.get("valid", True):
        return None
    image = row["image"]
    return (Image.open(io.BytesIO(image["bytes"])) if isinstance(image, Mapping) else image).convert("RGB")


class StoredImages(Sequence):
    """Rows of a stage of `CANDIDATE_SCHEMA` as images, decoded as they are asked for, with one shard in memory."""

    def __init__(self, stage: Stage, rows: Sequence[int]):
        self.stage, self.rows = stage, rows
        self._shard: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, place = divmod(self.rows[index], self.stage.rows_per_shard)
        if shard != self._shard[0]:
            self._shard = shard, self.stage.read_shard(shard, ["image", "valid"]).to_pylist()
        return decode_image(self._shard[1][place])


def measure_images(images: Stage, stage: Stage, embed: Embed = thumbnail_embedding) -> None:
    """Measures this rank's share of a model's images into `stage`, of shards alike, and waits for the other ranks."""
    shards = stage.share()
    for shard in tqdm(shards, desc="Measuring images", unit="shard", disable=not shards):
        rows = stage.rows(shard)
        found = image_statistics(StoredImages(images, rows), embed)
        vectors = [row.astype(np.float32) if ok else None for row, ok in zip(found.embeddings, found.valid)]
        columns = [np.asarray(rows), *found.measures.values(), pa.array(vectors, pa.list_(pa.float32()))]
        stage.write(shard, pa.table(dict(zip(STATISTICS_SCHEMA.names, columns)), schema=STATISTICS_SCHEMA))
    stage.finish()


def read_statistics(stage: Stage, images_per_prompt: int = 1) -> ImageStatistics:
    """What `measure_images` wrote."""
    table = stage.read()
    vectors = table["embedding"].to_pylist()  # `None` where an image is not valid
    width = next((len(row) for row in vectors if row is not None), 1)
    embeddings = np.array([[np.nan] * width if row is None else row for row in vectors])
    return ImageStatistics({name: table[name].to_numpy() for name in MEASURES}, embeddings, images_per_prompt)
