# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A miniature text-to-image world: its captions, what they mean, and what scenes consist of.

Pictures are 64 x 64 RGB scenes of flat shapes on a 4 x 4 grid. Captions follow GenEval's six tasks (arXiv 2310.11513):
one object, two objects, counting, colours, position and attribute binding. Like web data, the world is imperfect: of the
pictures that the models learned from, those under plain captions were *flawed* half of the time (washed-out colours,
blur, often the wrong content), while captions with words of quality ("sharp focus", "vivid colors") came with clean
ones. That is what prompt refinement can find, and what alignment can move into plain captions.
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

    def __str__(self) -> str:
        text = f" {self.relation or 'and'} ".join(_group_text(group) for group in self.groups)
        return f"{text} on a {self.background} background" if self.background else text


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


def _group_text(group: Group) -> str:
    noun = f"{group.color} {group.shape}" if group.color else group.shape
    if group.count == 1:
        return f"a {noun}"
    word = next(word for word, count in COUNTS.items() if count == group.count)
    return f"{word} {noun}{'es' if group.shape == 'cross' else 's'}"


_NOUN = rf"(?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})"
_ONE = rf"a {_NOUN}"
_CAPTION = re.compile(
    rf"\b(?:(?P<number>{'|'.join(COUNTS)}) (?:(?P<ncolor>{'|'.join(COLORS)}) )?(?P<nshape>{'|'.join(SHAPES)})(?:e?s)"
    rf"|{_ONE}(?: (?P<link>and|{'|'.join(RELATIONS)}) {_ONE})?)\b"
    rf"(?: on a (?P<background>{'|'.join(BACKGROUNDS)}) background)?"
)
# Numbers of the unnamed groups of _CAPTION (named groups are numbered too).
_ONE_GROUPS = [i for i in range(1, _CAPTION.groups + 1) if i not in _CAPTION.groupindex.values()]


def parse_caption(text: str) -> Caption:
    """Reads the meaning of a caption; words around it (a refiner's) are ignored.

    Raises:
        UserError: if no caption of this world stands in `text`.
    """
    match = _CAPTION.search(text.lower())
    if match is None:
        raise UserError(f"caption: expected a sentence of the tiny world such as 'a red circle', found {text!r}")
    background = match["background"]
    if match["number"]:
        group = Group(COUNTS[match["number"]], match["nshape"], match["ncolor"])
        return Caption("counting", (group,), background=background)
    color1, shape1, color2, shape2 = (match[i] for i in _ONE_GROUPS)
    first = Group(1, shape1, color1)
    if not match["link"]:
        return Caption("colors" if color1 else "single_object", (first,), background=background)
    groups = (first, Group(1, shape2, color2))
    if match["link"] == "and":
        return Caption("color_attr" if color1 and color2 else "two_object", groups, background=background)
    return Caption("position", groups, match["link"], background)


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
