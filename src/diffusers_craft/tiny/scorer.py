# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The exact scorer: reads a picture of the tiny world back and says whether it shows its caption.

No model is trained on this scorer or its rules; it is the judge that reward hacking cannot please.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .world import BACKGROUNDS, COLORS, IMAGE_SIZE, SHAPES, Caption, Object, Scene, parse_caption, shape_polygon


MIN_AREA = 30  # pixels; smaller specks are not objects
MIN_FOREGROUND = 60.0  # RGB distance from the background at which a pixel belongs to an object
MAX_COLOR_ERROR = 85.0  # RGB distance up to which an object counts as having a colour at all
MIN_IOU = 0.6  # overlap with the ideal shape below which an object is no shape of this world
TEMPLATE = 32  # side in pixels on which masks are compared


def _template(shape: str) -> np.ndarray:
    """The filled bounding box of a shape as a (32, 32) boolean mask."""
    corners = np.array(shape_polygon(shape, 0, 0, 1))
    corners = (corners - corners.min(0)) / (corners.max(0) - corners.min(0)) * (TEMPLATE * 4)
    image = Image.new("L", (TEMPLATE * 4, TEMPLATE * 4))
    ImageDraw.Draw(image).polygon([tuple(c) for c in corners], fill=255)
    return np.asarray(image.resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)) > 127


_TEMPLATES = {shape: _template(shape) for shape in SHAPES}


def _nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> tuple[str, float]:
    """The closest name of a palette and its RGB distance."""
    distances = {name: float(np.linalg.norm(color - np.array(rgb))) for name, rgb in palette.items()}
    name = min(distances, key=distances.get)
    return name, distances[name]


def _read_shape(mask: np.ndarray) -> tuple[str, float]:
    """Best-fitting shape of a cropped (h, w) boolean mask and its intersection over union."""
    box = Image.fromarray(mask.astype(np.uint8) * 255).resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR)
    filled = np.asarray(box) > 127
    ious = {name: (filled & t).sum() / max((filled | t).sum(), 1) for name, t in _TEMPLATES.items()}
    best = max(ious, key=ious.get)
    return best, float(ious[best])


def read_scene(image: Image.Image) -> Scene:
    """Finds the background and every object of a picture.

    Objects whose colour or shape is none of the world's are reported with colour or shape `"?"`; they count as objects.
    """
    pixels = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)), dtype=np.float32)  # (64, 64, 3)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    background, error = _nearest(ground, BACKGROUNDS)
    scene = Scene(background if error < MAX_COLOR_ERROR / 2 else "?")
    foreground = np.linalg.norm(pixels - ground, axis=-1) > MIN_FOREGROUND
    labels, _ = ndimage.label(foreground)
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[window] == index
        if mask.sum() < MIN_AREA:
            continue
        core = ndimage.binary_erosion(mask)
        inside = core if core.sum() >= MIN_AREA // 3 else mask
        color, error = _nearest(np.median(pixels[window][inside], axis=0), COLORS)
        shape, iou = _read_shape(mask)
        height, width = mask.shape
        scene.objects.append(
            Object(
                shape if iou >= MIN_IOU else "?",
                color if error < MAX_COLOR_ERROR else "?",
                window[1].start + width / 2,
                window[0].start + height / 2,
                max(height, width) / 2,
            )
        )
    return scene


def _stands(first: Object, second: Object, relation: str) -> bool:
    """GenEval's position rule: the normalised offset between the centres reaches 0.5 along the relation's axis."""
    offset = np.array([first.x - second.x, first.y - second.y])
    dx, dy = offset / max(float(np.linalg.norm(offset)), 1e-6)
    return bool({"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation] > 0.5)


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
    return caption.relation is None or _stands(members[0], members[1], caption.relation)


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
