# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The composite reward of CRAFT (arXiv 2603.18991, section 3.2): a weighted sum of normalised rewards.

The paper maps rewards to comparable scales without saying how; the z-score over the whole pool is our default.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError


NORMALIZATIONS = ("zscore", "minmax", "rank")


def check_weights(weights: Mapping[str, float], scored: Collection[str]) -> None:
    """Refuses weights that are negative, not finite, all zero, or of a reward that was not scored."""
    for name, weight in weights.items():
        if name not in scored:
            raise UserError(f"--rewards: expected weights of scored rewards ({', '.join(scored)}), found {name!r}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"--rewards: expected weights of at least 0, found {name}={weight:g}")
    if not any(weights.values()):
        raise UserError("--rewards: expected at least one weight above 0, found none")


def score_column(name: str, scores: Sequence[float], length: int) -> np.ndarray:
    """Scores as float64, checked to be one per row; whatever is not finite becomes NaN."""
    column = np.asarray(scores, dtype=np.float64)
    if column.shape != (length,):
        raise UserError(f"reward {name!r}: expected {length} scores, one a row, found shape {column.shape}")
    return np.where(np.isfinite(column), column, np.nan)


def normalization_constants(rewards: Mapping[str, Sequence[float]], normalization: str = "zscore") -> dict[str, Any]:
    """What maps raw scores to comparable scales, from all valid images j = 0 .. N of the pool; may be saved as JSON.

    Args:
        rewards (`Mapping[str, Sequence[float]]`): (n,) raw scores of each reward.
        normalization (`str`, *optional*, defaults to `"zscore"`): `"zscore"` (mean and population standard deviation),
            `"minmax"` (smallest and largest score) or `"rank"` (the sorted scores).

    Returns:
        `dict`: `{"normalization": ..., "rewards": {name: {..., "count": valid rows}}}`.

    Raises:
        UserError: if the normalisation is unknown or a reward has no valid score.
    """
    if normalization not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise UserError(f"--reward_normalization: expected one of {known}, found {normalization!r}")
    constants = {}
    for name, scores in rewards.items():
        column = score_column(name, scores, len(scores))
        column = column[~np.isnan(column)]
        if not len(column):
            raise UserError(f"reward {name!r}: expected the score of at least one valid image, found none")
        if normalization == "zscore":
            spread: dict[str, Any] = {"mean": float(column.mean()), "std": float(column.std())}
        elif normalization == "minmax":
            spread = {"min": float(column.min()), "max": float(column.max())}
        else:
            spread = {"values": np.sort(column).tolist()}
        constants[name] = {**spread, "count": len(column)}
    return {"normalization": normalization, "rewards": constants}


def _normalize(column: np.ndarray, normalization: str, constants: Mapping[str, Any]) -> np.ndarray:
    """Maps raw scores (n,) to the common scale; a reward without spread maps to 0."""
    if normalization == "rank":
        # Mid-distribution function: the share of the pool below, equal scores counted half. NaN stays NaN.
        values = np.asarray(constants["values"])
        below = np.searchsorted(values, column, "left") + np.searchsorted(values, column, "right")
        return np.where(np.isnan(column), np.nan, below / (2 * len(values)))
    if normalization == "zscore":
        offset, scale = constants["mean"], constants["std"]
    else:
        offset, scale = constants["min"], constants["max"] - constants["min"]
    # A constant column may show a standard deviation of a few ulp.
    return (column - offset) / scale if scale > 1e-12 * abs(offset) else column * 0.0


def composite_reward(
    rewards: Mapping[str, Sequence[float]],
    weights: Mapping[str, float],
    normalization: str = "zscore",
    constants: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The weighted sum of the normalised rewards, r_tot of section 3.2.

    Args:
        rewards (`Mapping[str, Sequence[float]]`): (n,) raw scores of each reward; NaN where the image is not valid.
        weights (`Mapping[str, float]`): weight of each reward; one that is not named weighs nothing.
        normalization (`str`, *optional*, defaults to `"zscore"`): `"zscore"`, `"minmax"` or `"rank"`.
        constants (`Mapping`, *optional*): what `normalization_constants` returned for an earlier pool, to reuse it.

    Returns:
        `np.ndarray`: (n,) float64; NaN where a weighted reward is NaN.

    Raises:
        UserError: if a weight is negative, all are zero, or one names a reward that was not scored.
    """
    check_weights(weights, rewards)
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    used = {name: rewards[name] for name in weights}
    if constants is None:
        constants = normalization_constants(used, normalization)
    elif constants["normalization"] != normalization:
        given = f"{constants['normalization']!r} as in the given constants"
        raise UserError(f"--reward_normalization: expected {given}, found {normalization!r}")
    length = len(next(iter(used.values())))
    total = np.zeros(length)
    for name, weight in weights.items():
        if name not in constants["rewards"]:
            raise UserError(f"normalisation constants: expected an entry for reward {name!r}, found none")
        total += weight * _normalize(score_column(name, used[name], length), normalization, constants["rewards"][name])
    return total
