# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""GenEval's rules (arXiv 2310.11513): whether the objects that a detector found in an image are those of its prompt.

Pure functions of detections. A prompt's requirements are GenEval's own: `include` lists what must be there (`class`,
`count`, maybe `color`, maybe `position` as [relation, index of an earlier requirement]), `exclude` what must not be there
as often as `count`. Objects of a class are looked at in the order of their scores.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import UserError


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
MIN_SCORE = 0.3
MIN_SCORE_COUNTING = 0.9
MAX_OBJECTS = 16  # of a class
SHRINK = 0.1  # of the sum of two objects' sizes: offsets smaller than that are none
MIN_DIRECTION = 0.5  # of the offset's length, along an axis


@dataclass(frozen=True)
class Detection:
    """An object that a detector found."""

    label: str  # its class, by COCO's name
    score: float  # the detector's confidence in [0, 1]
    box: tuple[float, float, float, float]  # left, top, right, bottom, pixels
    mask: np.ndarray | None = None  # (H, W) bool, its pixels


ColorOf = Callable[[Sequence[Detection]], Sequence[str]]  # objects of one class -> their colours


def keep_detections(detections: Sequence[Detection], counting: bool) -> dict[str, list[Detection]]:
    """Class to its objects, the surest first: at most 16, overlapping ones too, with a score above 0.3 (`counting`: 0.9)."""
    threshold = MIN_SCORE_COUNTING if counting else MIN_SCORE
    kept: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold:
            kept.setdefault(detection.label, []).append(detection)
    return {label: of_class[:MAX_OBJECTS] for label, of_class in kept.items()}


def relative_position(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> set[str]:
    """Where the first object stands relative to the second: none, one or two of GenEval's four relations.

    The offset of the centres loses a tenth of the sum of the two sizes on each axis, towards zero, and is then divided by
    the length of the offset as it was before; an axis counts beyond 0.5.
    """
    first, second = (np.asarray(b, dtype=float).reshape(2, 2) for b in (box, other))  # corners (2, 2)
    offset = first.mean(0) - second.mean(0)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - SHRINK * sizes, 0)
    if (np.abs(shrunk) < 1e-3).all():
        return set()
    dx, dy = shrunk / np.linalg.norm(offset)
    found = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {relation for relation, along in found.items() if along > MIN_DIRECTION}


def find_failures(
    objects: Mapping[str, Sequence[Detection]], requirements: Mapping[str, Any], color_of: ColorOf | None = None
) -> list[str]:
    """Why an image does not show its prompt; empty if it does.

    `objects` are what `keep_detections` returns, `requirements` GenEval's metadata with `include` and maybe `exclude`, and
    `color_of` is needed where a colour is asked for.
    """
    failures: list[str] = []
    groups: list[Sequence[Detection] | None] = []  # of each requirement: its objects, None where it failed
    for wanted in requirements.get("include", ()):
        found = list(objects.get(wanted["class"], ()))[: wanted["count"]]
        problem = None
        if len(found) < wanted["count"]:
            problem = f"expected {wanted['count']} {wanted['class']}, found {len(found)}"
        elif "color" in wanted:
            problem = _wrong_color(found, wanted, color_of)
        if problem is None and "position" in wanted:
            problem = _wrong_position(found, wanted, groups)
        failures += [problem] if problem else []
        groups.append(None if problem else found)
    for unwanted in requirements.get("exclude", ()):
        number = len(objects.get(unwanted["class"], ()))
        if number >= unwanted["count"]:
            failures.append(f"expected fewer than {unwanted['count']} {unwanted['class']}, found {number}")
    return failures


def _wrong_color(found: list[Detection], wanted: Mapping[str, Any], color_of: ColorOf | None) -> str | None:
    what = f"{wanted['color']} {wanted['class']}"
    if color_of is None:
        raise UserError(f"geneval: expected a colour classifier for {what}, found none")
    colors = list(color_of(found))
    if colors.count(wanted["color"]) >= wanted["count"]:
        return None
    return f"expected {wanted['count']} {what}, found {', '.join(colors)}"


def _wrong_position(found: list[Detection], wanted: Mapping[str, Any], groups: list) -> str | None:
    """Every object must stand so to every object of the earlier requirement."""
    relation, target = wanted["position"]
    expected = f"expected {wanted['class']} {relation}"
    if groups[target] is None:
        return f"{expected} an object that is not there"
    for one, other in itertools.product(found, groups[target]):
        relations = relative_position(one.box, other.box)
        if relation not in relations:
            return f"{expected} {other.label}, found {' and '.join(sorted(relations)) or 'neither'}"
    return None
