# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""T2I-CompBench's rules (arXiv 2307.06350): which evaluator judges which prompt, and how three become one.

UniDet, which judges spatial relations there, has no maintained replacement: rows that need it have no score (NaN).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import UserError


ATTRIBUTES = ("color", "shape", "texture")  # categories judged by BLIP-VQA
CATEGORIES = (*ATTRIBUTES, "spatial", "non_spatial", "complex")
MAX_CHUNKS = 8  # noun phrases a prompt
# The three_in_one label of a complex prompt -> the evaluators whose mean is its score; no label means all three.
THREE_IN_ONE = {
    "spatial": ("blip", "unidet"),
    "action": ("blip", "clip"),
    "spatialaction": ("blip", "unidet", "clip"),
}


def evaluators(category: str, three_in_one: str | None = None) -> tuple[str, ...]:
    """Which of `blip`, `clip` and `unidet` a prompt's score is the mean of.

    Raises:
        UserError: for an unknown category or label.
    """
    if category == "complex":
        label = three_in_one or "spatialaction"
        if label not in THREE_IN_ONE:
            raise UserError(f"three_in_one: expected one of {', '.join(THREE_IN_ONE)}, found {label!r}")
        return THREE_IN_ONE[label]
    if category not in CATEGORIES:
        raise UserError(f"category: expected one of {', '.join(CATEGORIES)}, found {category!r}")
    return {"spatial": ("unidet",), "non_spatial": ("clip",)}.get(category, ("blip",))


def combine(scores: Mapping[str, float], category: str, three_in_one: str | None = None) -> float:
    """A prompt's score from those of its evaluators; NaN if one of them has none, never the mean of the others."""
    return float(np.mean([scores.get(name, np.nan) for name in evaluators(category, three_in_one)]))


def attribute_score(yes: Sequence[float], no: Sequence[float]) -> float:
    """BLIP-VQA's score: the product over noun phrases of p(yes) / (p(yes) + p(no)); 1 for a prompt without any."""
    return float(np.prod([y / (y + n) for y, n in zip(yes, no, strict=True)]))
