# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs out of scored candidates: which image of a prompt wins over which other one."""

from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from .composite import score_column


PAIRINGS = ("best_worst", "best_baseline")


def group_pairs(
    scores: Sequence[float],
    groups: Sequence[int],
    variants: Sequence[int],
    pairing: str = "best_worst",
    k: int | None = None,
) -> np.ndarray:
    """At most one pair per group, in which the winner scores strictly higher.

    Args:
        scores (`Sequence[float]`): (n,) what decides, e.g. the composite reward; NaN where the image is not valid.
        groups, variants (`Sequence[int]`): (n,) prompt index i; (n,) j within the group, 0 the original prompt's image.
        pairing (`str`, *optional*, defaults to `"best_worst"`): the best against the worst of all images of the group,
            or (`"best_baseline"`) the best refined image, j >= 1, against the one of the original prompt, j = 0.
        k (`int`, *optional*): only the k pairs with the best winners; the default is all.

    Returns:
        `np.ndarray`: (p, 2) int64 rows of winner and loser, best winner first; ties in order of (group, variant).

    Raises:
        UserError: if the pairing is unknown, or fewer than `k` pairs exist.
    """
    if pairing not in PAIRINGS:
        raise UserError(f"--pairing: expected one of {', '.join(PAIRINGS)}, found {pairing!r}")
    groups, variants = np.asarray(groups), np.asarray(variants)
    scores = score_column("composite", scores, len(groups))
    valid = ~np.isnan(scores)
    refined = valid & (variants > 0) if pairing == "best_baseline" else valid
    baseline = valid & (variants == 0) if pairing == "best_baseline" else valid
    winners = _first_of_groups(-scores, groups, variants, refined)
    losers = _first_of_groups(scores, groups, variants, baseline)
    pairs = [(winners[group], losers[group]) for group in winners if group in losers]
    pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    pairs = pairs[scores[pairs[:, 0]] > scores[pairs[:, 1]]]
    pairs = pairs[np.lexsort((variants[pairs[:, 0]], groups[pairs[:, 0]], -scores[pairs[:, 0]]))]
    check_num_pairs(k, len(pairs))
    return pairs[:k]


def check_num_pairs(k: int | None, found: int) -> None:
    """Raises a `UserError` unless `k` of the `found` pairs can be taken; `None` is all."""
    if k is not None and not 1 <= k <= found:
        raise UserError(f"--num_pairs: expected 1 to {found} (pairs with a winner), found {k}")


def _first_of_groups(key: np.ndarray, groups: np.ndarray, variants: np.ndarray, mask: np.ndarray) -> dict[int, int]:
    """Group to the row with its smallest key, among masked rows; the lower variant of equal ones."""
    rows = np.flatnonzero(mask)
    rows = rows[np.lexsort((variants[rows], key[rows], groups[rows]))]
    _, first = np.unique(groups[rows], return_index=True)
    return dict(zip(groups[rows][first].tolist(), rows[first].tolist()))
