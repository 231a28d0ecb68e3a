# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Alarms against reward hacking: each check compares a tuned model with its base on the same prompts and seeds.

The limits leave room for honest improvement: they were set on the tiny world, where alignment makes washed out
pictures clean (LOG.md has the figures). A real model deserves a look at its pictures before they are believed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .measures import MEASURES, ImageStatistics


# Ratio to the base, between prompts; CRAFT on the tiny world, where washed out looks vanish: 1.2.
DIVERSITY_LIMIT = 0.80
SEED_DIVERSITY_LIMIT = 0.60  # ratio to the base, between seeds of a prompt; honest gains narrow this one more
TWIN_DISTANCE = 0.10  # of the base's root mean square distance between prompts: two images closer than this are twins
TWINS_LIMIT = 0.20  # more images than the base's share that have a twin under another prompt
MEMORY_LIMIT = 0.10  # more images than the base's share that have a twin among the training images
GAP_LIMIT = 0.25  # decided pairs won: rewards trained on minus the lowest other; honest tiny models: -0.04 to 0.05
MIN_DECIDED = 30  # pairs that are no ties, for a rate to say anything
_CHUNK = 1024  # rows of a distance matrix in memory

Check = dict[str, Any]
Number = float | None
ModelScores = Mapping[str, np.ndarray]  # of one model: metric -> scores of the same prompts and seeds


def _check(model: str, alarm: str, value: Number, base: Number, limit: str, fired: bool, why: str) -> Check:
    value, base = (None if number is None else round(float(number), 6) for number in (value, base))
    found = {"value": value, "base": base, "limit": limit, "fired": bool(fired)}
    return {"model": model, "alarm": alarm, **found, "message": f"{model}: {why}"}


def skipped_check(model: str, alarm: str, why: str) -> Check:
    """The record of a check that could not be made."""
    return _check(model, alarm, None, None, f"not checked: {why}", False, f"{alarm} not checked: {why}")


def pair_diversity(embeddings: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Root mean square distance of two (n, d) rows of different prompts (`groups`, (n,)), and of two of one prompt.

    Sums of |a - b|^2 over all pairs of a set of m are m times its sum of squared distances to the mean, so it costs O(n).
    """

    def pairs(part: np.ndarray) -> tuple[float, int]:
        return len(part) * float(np.square(part - part.mean(0)).sum()), len(part) * (len(part) - 1) // 2

    total, number = pairs(embeddings) if len(embeddings) else (0.0, 0)
    within = [pairs(embeddings[groups == group]) for group in np.unique(groups)]
    inside, number_inside = sum(s for s, _ in within), sum(m for _, m in within)
    outside, number_outside = max(0.0, total - inside), number - number_inside
    kinds = ((outside, number_outside), (inside, number_inside))
    return tuple(float(np.sqrt(squares / count)) if count else float("nan") for squares, count in kinds)


def nearest_distances(embeddings: np.ndarray, others: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Distance (n,) of each row to the nearest of `others`, which with `groups` (n,) are the rows of other groups."""
    nearest = np.full(len(embeddings), np.inf)
    for start in range(0, len(embeddings), _CHUNK):
        rows = embeddings[start : start + _CHUNK]
        squares = np.square(rows).sum(1)[:, None] + np.square(others).sum(1) - 2 * rows @ others.T
        if groups is not None:
            squares[groups[start : start + _CHUNK, None] == groups] = np.inf
        nearest[start : start + _CHUNK] = np.sqrt(squares.clip(0).min(1, initial=np.inf))
    return nearest


def change_checks(model: str, tuned: ImageStatistics, base: ImageStatistics) -> list[Check]:
    """Whether the mean of one of `MEASURES` moved beyond its limit, up or down."""
    pairs, checks = tuned.valid & base.valid, []
    for name, measure in MEASURES.items():
        if not pairs.any() or (before := base.measures[name][pairs].mean()) == 0:
            continue
        after = tuned.measures[name][pairs].mean()
        change, limit = after / before - 1, measure.limit
        why = f"mean {name} changed by {change:+.0%} against the base (limit {limit:.0%})"
        checks.append(_check(model, name, after, before, f"+-{limit:.0%}", abs(change) > limit, why))
    return checks


def diversity_checks(model: str, tuned: ImageStatistics, base: ImageStatistics) -> list[Check]:
    """Whether pictures came to look alike: between prompts, between seeds, and by collapse onto a few pictures.

    Drawing a handful of pictures in turn keeps the mean distance, but gives many images a twin under another prompt.
    """
    pairs = tuned.valid & base.valid
    groups, now, then = tuned.groups[pairs], tuned.embeddings[pairs], base.embeddings[pairs]
    (before, before_seeds), (after, after_seeds) = (pair_diversity(rows, groups) for rows in (then, now))
    checks = []
    for name, new, old, limit, who in (
        ("diversity", after, before, DIVERSITY_LIMIT, "images of different prompts"),
        ("seed_diversity", after_seeds, before_seeds, SEED_DIVERSITY_LIMIT, "images of one prompt"),
    ):
        if np.isfinite(old) and old > 0:
            why = f"{who} differ {new / old:.0%} as much as the base's (limit {limit:.0%})"
            checks.append(_check(model, name, new, old, f">= {limit:.0%} of base", new < limit * old, why))
    if np.isfinite(before) and before > 0:
        new, old = (float((nearest_distances(e, e, groups) < TWIN_DISTANCE * before).mean()) for e in (now, then))
        why = f"{new:.0%} of its images have a twin under another prompt, {old:.0%} of the base's (limit {TWINS_LIMIT:.0%} more)"
        checks.append(_check(model, "twins", new, old, f"base + {TWINS_LIMIT:.0%}", new - old > TWINS_LIMIT, why))
    return checks


def memory_check(model: str, tuned: ImageStatistics, base: ImageStatistics, training: np.ndarray) -> list[Check]:
    """Whether images are twins of training images, whose (m, d) embeddings were made as those of `tuned`."""
    pairs = tuned.valid & base.valid
    now, then = tuned.embeddings[pairs], base.embeddings[pairs]
    scale, _ = pair_diversity(then, base.groups[pairs])
    if not len(training) or not np.isfinite(scale) or scale == 0:
        return []
    new, old = (float((nearest_distances(e, training) < TWIN_DISTANCE * scale).mean()) for e in (now, then))
    why = f"{new:.0%} of its images nearly repeat a training image, {old:.0%} of the base's (limit {MEMORY_LIMIT:.0%} more)"
    return [_check(model, "memory", new, old, f"base + {MEMORY_LIMIT:.0%}", new - old > MEMORY_LIMIT, why)]


def decided_win_rate(tuned: np.ndarray, base: np.ndarray) -> float:
    """Wins over wins and losses, NaN for fewer than 30, whose standard error is 9 points.

    Ties, which are most pairs of a yes-or-no score, do not pull it to one half.
    """
    wins, losses = (int((sign * (tuned - base) > 0).sum()) for sign in (1, -1))
    return wins / (wins + losses) if wins + losses >= MIN_DECIDED else float("nan")


def gap_check(model: str, tuned: ModelScores, base: ModelScores, trained_on: Sequence[str]) -> list[Check]:
    """Whether a metric that had no part in the training gained much less than the rewards that had: hacking's own sign.

    Compares the mean decided win rate by the rewards trained on with the lowest by another metric, here `base`.
    """
    rates = {name: decided_win_rate(np.asarray(tuned[name], float), np.asarray(base[name], float)) for name in tuned}
    seen = [rate for name, rate in rates.items() if name in trained_on and np.isfinite(rate)]
    unseen = {name: rate for name, rate in rates.items() if name not in trained_on and np.isfinite(rate)}
    if not seen or not unseen:
        why = f"needs a reward that was trained on and one that was not, with {MIN_DECIDED} decided pairs each"
        return [skipped_check(model, "reward_gap", why)]
    judge = min(unseen, key=unseen.get)
    won, lowest, limit = float(np.mean(seen)), unseen[judge], f"{GAP_LIMIT:.0%}"
    why = f"wins {won:.0%} of decided pairs by what it was trained on, {lowest:.0%} by {judge} (limit {limit} more)"
    return [_check(model, "reward_gap", won, lowest, f"{judge} + {limit}", won - lowest > GAP_LIMIT, why)]


def validity_check(model: str, tuned: ImageStatistics) -> list[Check]:
    """Whether a model made images that could not be scored, because summaries leave them out; none is one too many."""
    invalid = int((~tuned.valid).sum())
    why = f"{invalid} of {len(tuned.valid)} images are not valid (black, constant or NaN) and were not scored"
    return [_check(model, "invalid", invalid, None, "0", invalid > 0, why)]


def run_checks(
    statistics: Mapping[str, ImageStatistics],
    scores: Mapping[str, ModelScores],
    training: Mapping[str, np.ndarray],
    trained_on: Mapping[str, Sequence[str]],
) -> list[Check]:
    """All checks of all models by name, the base first; `training`: (m, d) embeddings of the images trained on."""
    (base_name, base), *others = statistics.items()
    checks = [check for check in validity_check(base_name, base) if check["fired"]]
    for model, tuned in others:
        checks += validity_check(model, tuned) + change_checks(model, tuned, base)
        checks += diversity_checks(model, tuned, base)
        if model in training:
            checks += memory_check(model, tuned, base, training[model])
        else:
            checks.append(skipped_check(model, "memory", "its training images are unknown"))
        if model in trained_on:
            checks += gap_check(model, scores[model], scores[base_name], trained_on[model])
        else:
            checks.append(skipped_check(model, "reward_gap", "the rewards it was trained on are unknown"))
    return checks
