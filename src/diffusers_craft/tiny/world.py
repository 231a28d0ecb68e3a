# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A miniature text-to-image world: captions of GenEval's six tasks (arXiv 2310.11513), what they mean, and scenes.

Pictures are 64 x 64 RGB scenes of flat shapes on a 4 x 4 grid. Half of those that the models learned from under plain
captions were flawed (washed-out, blurred, often wrong), those under words of quality ("sharp focus") clean: prompt
refinement can find that, and alignment move it into plain captions.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError


IMAGE_SIZE = 64  # pixels

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 210, 40),
    "purple": (160, 60, 190),
    "cyan": (60, 205, 220),
}
BACKGROUNDS = {"black": (15, 15, 15), "gray": (128, 128, 128), "white": (243, 243, 243)}
SHAPES = ("circle", "square", "triangle", "star", "cross")
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's names


@dataclass(frozen=True)
class Group:
    """`count` objects of one `shape`; `color` is `None` when the caption leaves it open."""

    count: int
    shape: str
    color: str | None = None


@dataclass(frozen=True)
class Caption:
    """The meaning of a caption. `groups` holds one group, or two when the caption names two objects."""

    task: str
    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None


@dataclass
class Object:
    """A drawn object: centre and radius in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass
class Scene:
    background: str
    objects: list[Object] = field(default_factory=list)


def _noun(number: int) -> str:
    return rf"(?:(?P<color{number}>{'|'.join(COLORS)}) )?(?P<shape{number}>{'|'.join(SHAPES)})"


_PAIR = rf"a {_noun(1)}(?: (?P<link>and|{'|'.join(RELATIONS)}) a {_noun(2)})?"
_CAPTION = re.compile(
    rf"\b(?:(?P<count>{'|'.join(COUNTS)}) {_noun(0)}(?:e?s)|{_PAIR})\b"
    rf"(?: on a (?P<background>{'|'.join(BACKGROUNDS)}) background)?"
)


def parse_caption(text: str) -> Caption:
    """Reads the meaning of a caption; words around it (a refiner's) are ignored.

    Raises:
        UserError: if no caption of this world stands in `text`.
    """
    match = _CAPTION.search(text.lower())
    if match is None:
        raise UserError(f"caption: expected a sentence of the tiny world such as 'a red circle', found {text!r}")
    count, relation = COUNTS.get(match["count"], 1), match["link"]
    groups = tuple(Group(count, match[f"shape{i}"], match[f"color{i}"]) for i in range(3) if match[f"shape{i}"])
    colored = all(group.color for group in groups)
    if match["count"]:
        task = "counting"
    elif relation is None:
        task = "colors" if colored else "single_object"
    elif relation == "and":
        task, relation = "color_attr" if colored else "two_object", None
    else:
        task = "position"
    return Caption(task, groups, relation, match["background"])


def shape_polygon(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of `shape` around (x, y); a circle is a polygon of 48 corners."""
    if shape == "square":
        h = 0.85 * radius
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "cross":
        a, b = radius, radius * 0.33
        corners = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b)]
        return [(x + dx, y + dy) for dx, dy in [*corners, (-b, -b)]]
    n, inner = {"circle": (48, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    angles = -np.pi / 2 + 2 * np.pi * np.arange(n) / n
    radii = np.where(np.arange(n) % 2 == 0, radius, radius * inner) * (1.1 if shape == "star" else 1.0)
    return list(zip((x + radii * np.cos(angles)).tolist(), (y + radii * np.sin(angles)).tolist()))
