# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Stage 6: means, medians and win rates with intervals; models share seeds, so images are compared in pairs."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..core.records import REFINED_SCHEMA, derive_seed
from ..errors import UserError


def evaluation_rows(prompts: Sequence[str], images_per_prompt: int = 1) -> pa.Table:
    """n prompts as n * k unrefined rows of `REFINED_SCHEMA`: a group each, its k images as variants 0 .. k - 1."""
    if images_per_prompt < 1:
        raise UserError(f"--images_per_prompt: expected at least 1, found {images_per_prompt}")
    rows = [
        {"group": i, "variant": j, "prompt": p, "refined_prompt": p, "refined": False, "refiner": "none"}
        for i, p in enumerate(prompts)
        for j in range(images_per_prompt)
    ]
    return pa.Table.from_pylist([{"row": i, **row} for i, row in enumerate(rows)], schema=REFINED_SCHEMA)


def _per_prompt(values: np.ndarray) -> np.ndarray:
    """(n, k) or (n,) values as the mean of each prompt's images, those without a value left out: (n,)."""
    values = np.asarray(values, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a prompt without any value is NaN
        return values if values.ndim == 1 else np.nanmean(values, axis=1)


def _outcomes(tuned: np.ndarray, base: np.ndarray) -> np.ndarray:
    """For every prompt with a pair of scores: 1 for a win, 0.5 for a tie, 0 for a loss; the mean over its pairs."""
    tuned, base = np.asarray(tuned, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if tuned.shape != base.shape:
        raise UserError(f"tuned: expected one score per prompt like the base, {base.shape}, found {tuned.shape}")
    pairs = np.isfinite(tuned) & np.isfinite(base)
    outcomes = _per_prompt(np.where(pairs, (np.sign(np.where(pairs, tuned - base, 0)) + 1) / 2, np.nan))
    return outcomes[~np.isnan(outcomes)]


def win_rate(tuned: np.ndarray, base: np.ndarray) -> float:
    """Share of prompts on which `tuned` scores higher; ties count half: (wins + ties / 2) / n.

    Args:
        tuned (`np.ndarray`): (n,) scores, or (n, k) of k images per prompt.
        base (`np.ndarray`): scores of the same prompts and seeds; pairs with a NaN are left out.

    Returns:
        `float`: in [0, 1]; NaN if no pair is left.
    """
    outcomes = _outcomes(tuned, base)
    return float(outcomes.mean()) if len(outcomes) else float("nan")


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, section 13.3).

    Where all values are equal the interval has no width, however few they are.

    Args:
        values (`np.ndarray`): (n,) without NaN, e.g. 1 / 0.5 / 0 per prompt. One value per prompt: images of a prompt
            are not independent, and resampling them would give too narrow an interval.
        confidence (`float`, *optional*, defaults to 0.95): coverage aimed at.
        num_resamples (`int`, *optional*, defaults to 10000): resamples.
        seed (`int`, *optional*, defaults to 0): makes the interval repeatable.

    Returns:
        `tuple[float, float]`: lower and upper end; NaN if there are no values.
    """
    if not len(values):
        return float("nan"), float("nan")
    # Drawing how often each distinct value occurs is the same as drawing rows, and fast for a win rate's three.
    distinct, counts = np.unique(values, return_counts=True)
    resamples = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=num_resamples)
    means = resamples @ distinct / len(values)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def summarize(
    scores: Mapping[str, Mapping[str, np.ndarray]], seed: int = 0, categories: Sequence[str | None] | None = None
) -> list[dict[str, Any]]:
    """One row per model and metric, then one per model, metric and category; the first model is the base.

    `scores`: model to metric to (n,) or (n, k), whose mean counts. NaN marks an image without a score; a tuned model's
    row leaves out every prompt that lacks either score. Missing numbers are `None`. Win rates are in [0, 1].
    """
    base_name, base = next(iter(scores.items()))
    known = np.array([category or "" for category in categories or []], dtype=object)
    names = [name for name in dict.fromkeys(known.tolist()) if name]
    groups: list[tuple[str | None, Any]] = [(None, slice(None)), *((name, known == name) for name in names)]
    rows: list[dict[str, Any]] = []
    for model, metrics in scores.items():
        if set(metrics) != set(base):
            raise UserError(f"scores of {model!r}: expected the metrics {sorted(base)}, found {sorted(metrics)}")
        for metric in base:
            values, other = np.asarray(metrics[metric], float), np.asarray(base[metric], float)
            if len(known) not in (0, len(values)):
                raise UserError(f"categories: expected one for each of {len(values)} prompts, found {len(known)}")
            found = []
            for name, chosen in groups:
                own_seed = derive_seed(seed, "bootstrap", model, metric, *([name] if name else []))
                row = _row(values[chosen], None if model == base_name else other[chosen], own_seed)
                found.append({"category": name, "model": model, "metric": metric, **row})
            if means := [row["mean"] for row in found[1:] if row["mean"] is not None]:
                found[0]["mean_of_categories"] = float(np.mean(means))  # unweighted: GenEval's overall score
            rows += found
    return sorted(rows, key=lambda row: row["category"] is not None)  # stable: rows of all prompts come first


def _row(values: np.ndarray, base: np.ndarray | None, seed: int) -> dict[str, Any]:
    """The numbers of one model and metric on some prompts; without `base` the model is the base."""
    means = _per_prompt(values)
    counted = ~np.isnan(means) & (True if base is None else ~np.isnan(_per_prompt(base)))
    keys = ("mean", "median", "mean_of_categories", "win_rate", "win_rate_low", "win_rate_high")
    row = {"n": int(counted.sum()), **dict.fromkeys(keys)}
    if len(found := means[counted]):
        # Of yes and no a median says which is more frequent, no more.
        median = None if np.isin(found, (0, 1)).all() else float(np.median(found))
        row |= {"mean": float(np.mean(found)), "median": median}
    if base is not None and len(outcomes := _outcomes(values, base)):
        low, high = bootstrap_interval(outcomes, seed=seed)
        row |= {"win_rate": float(outcomes.mean()), "win_rate_low": low, "win_rate_high": high}
    return row
