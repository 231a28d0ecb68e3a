# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pairs of a group against brute force."""

import itertools

import numpy as np
import pytest

from diffusers_craft import group_pairs


def _random_pool(seed: int = 0, groups: int = 12, size: int = 4):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, size=groups * size).astype(float)  # with ties
    scores[rng.random(len(scores)) < 0.15] = np.nan
    order = rng.permutation(len(scores))  # rows in any order
    identity = np.array(list(itertools.product(range(groups), range(size))))[order]
    return scores, identity[:, 0], identity[:, 1]


@pytest.mark.parametrize("pairing", ["best_worst", "best_baseline"])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_against_brute_force(pairing, seed):
    scores, groups, variants = _random_pool(seed)
    expected = []
    for group in range(12):
        members = sorted((v, r) for r, (g, v) in enumerate(zip(groups, variants)) if g == group)
        rows = [r for v, r in members if not np.isnan(scores[r])]
        baseline = [r for v, r in members if v == 0 and not np.isnan(scores[r])]
        refined = [r for v, r in members if v > 0 and not np.isnan(scores[r])]
        winners, losers = (rows, rows) if pairing == "best_worst" else (refined, baseline)
        if winners and losers:
            best = max(winners, key=lambda r: (scores[r], -variants[r]))
            worst = min(losers, key=lambda r: (scores[r], variants[r]))
            if scores[best] > scores[worst]:
                expected.append((best, worst))
    expected.sort(key=lambda pair: (-scores[pair[0]], groups[pair[0]]))
    found = group_pairs(scores, groups, variants, pairing)
    assert found.tolist() == [list(map(int, pair)) for pair in expected]
    assert group_pairs(scores, groups, variants, pairing, k=2).tolist() == found[:2].tolist()


def test_a_group_of_equals_has_no_pair():
    assert group_pairs([1.0, 1.0, 2.0], [0, 0, 1], [0, 1, 0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairing": "first"}, "--pairing: expected one of best_worst, best_baseline, found 'first'"),
        ({"k": 3}, r"--num_pairs: expected 1 to 1 \(pairs with a winner\), found 3"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        group_pairs([1.0, 2.0], [0, 0], [0, 1], **options)
