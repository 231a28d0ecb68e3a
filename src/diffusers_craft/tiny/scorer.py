# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The exact scorer: reads a picture of the tiny world back and says whether it shows its caption.

No model is trained on this scorer or its rules; it is the judge that reward hacking cannot please.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .world import BACKGROUNDS, COLORS, IMAGE_SIZE, SHAPES, Caption, Object, Scene, parse_caption, shape_polygon


MIN_AREA = 25  # pixels; smaller specks are not objects
MIN_FOREGROUND = 60.0  # RGB distance from the background at which a pixel belongs to an object
MAX_COLOR_ERROR = 85.0  # RGB distance up to which an object counts as having a colour at all
MIN_FIT = 0.7  # explained share of an object's coverage below which it is no shape of this world
WINDOW = 27  # side in pixels of the window around an object in which shapes are compared


@cache
def _templates() -> tuple[list[str], np.ndarray]:
    """Names (m) and soft coverage (m, 27 * 27) in [0, 1] of every shape at several sizes and sub-pixel places."""
    names, windows = [], []
    for shape in SHAPES:
        corners = np.array(shape_polygon(shape, 0, 0, 1))
        corners -= (corners.min(0) + corners.max(0)) / 2  # an object is centred by its bounding box
        for radius in np.arange(5.5, 11.5, 0.5):
            for dx, dy in product((-0.5, 0.0, 0.5), repeat=2):
                image = Image.new("L", (WINDOW * 4, WINDOW * 4))
                points = (corners * radius + [WINDOW / 2 + dx, WINDOW / 2 + dy]) * 4
                ImageDraw.Draw(image).polygon([tuple(point) for point in points.tolist()], fill=255)
                coverage = np.asarray(image, dtype=np.float32).reshape(WINDOW, 4, WINDOW, 4).mean((1, 3)) / 255
                names.append(shape)
                windows.append(ndimage.gaussian_filter(coverage, 0.6).ravel())
    return names, np.stack(windows)


def _nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]], limit: float) -> str:
    """The closest name of a palette, `"?"` if none is within an RGB distance of `limit`."""
    distances = {name: float(np.linalg.norm(color - np.array(rgb))) for name, rgb in palette.items()}
    name = min(distances, key=distances.get)
    return name if distances[name] < limit else "?"


def _read_shape(coverage: np.ndarray, row: float, column: float) -> str:
    """Best-fitting shape around a place of a (64, 64) coverage map, `"?"` if it explains too little of it."""
    top, left = round(row - 0.5), round(column - 0.5)  # the pixel whose centre is nearest
    window = np.pad(coverage, WINDOW // 2)[top : top + WINDOW, left : left + WINDOW].ravel()
    names, templates = _templates()
    errors = ((templates - window) ** 2).sum(1)
    best = int(errors.argmin())
    return names[best] if 1.0 - float(errors[best] / max((window**2).sum(), 1e-6)) >= MIN_FIT else "?"


def read_scene(image: Image.Image) -> Scene:
    """The background and every object of a picture, with `"?"` for colours and shapes that are none of the world's."""
    pixels = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)), dtype=np.float32)  # (64, 64, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    scene = Scene(_nearest(ground, BACKGROUNDS, MAX_COLOR_ERROR / 2))
    labels, _ = ndimage.label(np.linalg.norm(pixels - ground, axis=-1) > MIN_FOREGROUND)
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        whole = labels == index
        if whole.sum() < MIN_AREA:
            continue
        core = ndimage.binary_erosion(whole)
        ink = np.median(pixels[core if core.sum() >= MIN_AREA // 3 else whole], axis=0)
        # How much of each pixel the object covers, by its place between background and ink.
        covered = ((pixels - ground) @ (ink - ground) / ((ink - ground) ** 2).sum()).clip(0, 1)
        x, y = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
        shape = _read_shape(covered * ndimage.binary_dilation(whole, iterations=2), y, x)
        radius = max(rows.stop - rows.start, columns.stop - columns.start) / 2
        scene.objects.append(Object(shape, _nearest(ink, COLORS, MAX_COLOR_ERROR), x, y, radius))
    return scene


def scene_shows(scene: Scene, caption: Caption) -> bool:
    """Whether a scene has exactly the objects that the caption names, no more, in their relation and on its background."""
    if caption.background and scene.background != caption.background:
        return False
    if len(scene.objects) != sum(group.count for group in caption.groups):
        return False
    members = []
    for group in caption.groups:
        fits = [o for o in scene.objects if o.shape == group.shape and group.color in (None, o.color)]
        if len(fits) != group.count or "?" in {o.color for o in fits}:
            return False
        members.append(fits[0])
    if caption.relation is None:
        return True
    # GenEval's rule: the normalised offset between the centres reaches 0.5 along the relation's axis.
    offset = np.array([members[0].x - members[1].x, members[0].y - members[1].y])
    dx, dy = offset / max(float(np.linalg.norm(offset)), 1e-6)
    return bool({"left of": -dx, "right of": dx, "above": -dy, "below": dy}[caption.relation] > 0.5)


def exact_score(prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
    """1.0 where a picture shows its caption exactly, else 0.0.

    Args:
        prompts (`Sequence[str]`): B captions of the tiny world; words around the caption are ignored.
        images (`Sequence[PIL.Image.Image]`): B pictures.

    Returns:
        `np.ndarray`: (B,) float32.
    """
    shown = [scene_shows(read_scene(image), parse_caption(text)) for text, image in zip(prompts, images, strict=True)]
    return np.array(shown, dtype=np.float32)


class ExactReward:
    """The exact scorer as a metric for an evaluation; never a reward to train on."""

    name = "exact"
    source = {"scorer": "exact scorer of the tiny world", "unit": "1 if the image shows its caption exactly, else 0"}

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        return exact_score(prompts, images)

    def bind(self, prompts: Any) -> bool:
        """Whether every prompt of a set is a caption of this world."""
        try:
            return all(parse_caption(prompt) for prompt in prompts.prompts)
        except ValueError:
            return False
