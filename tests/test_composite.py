# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The composite reward against brute force, its invariances, frozen constants and error texts."""

import json
import math

import numpy as np
import pytest

from diffusers_craft import composite_reward, group_advantages, normalization_constants


WEIGHTS = {"hps_v2.1": 0.4, "pickscore": 0.4, "aesthetic": 0.2}


def random_rewards(seed: int, n: int = 60) -> dict[str, np.ndarray]:
    """Rewards in their own units, with ties; every seventh row is not valid."""
    rng = np.random.default_rng(seed)
    scales = {"hps_v2.1": 0.01, "pickscore": 1.0, "aesthetic": 30.0}
    rewards = {name: (rng.integers(0, 9, n) * scale).astype(np.float32) for name, scale in scales.items()}
    for scores in rewards.values():
        scores[::7] = np.nan
    return rewards


def brute_force(scores: np.ndarray, normalization: str) -> list[float]:
    pool = [float(s) for s in scores if not math.isnan(s)]
    if normalization == "zscore":
        mean = sum(pool) / len(pool)
        scale = math.sqrt(sum((s - mean) ** 2 for s in pool) / len(pool))
        return [(float(s) - mean) / scale for s in scores]
    if normalization == "minmax":
        return [(float(s) - min(pool)) / (max(pool) - min(pool)) for s in scores]
    shares = [sum((p < s) + 0.5 * (p == s) for p in pool) / len(pool) for s in map(float, scores)]
    return [math.nan if math.isnan(s) else share for s, share in zip(scores, shares, strict=True)]


@pytest.mark.parametrize("normalization", ["zscore", "minmax", "rank"])
def test_composite_agrees_with_brute_force(normalization):
    for seed in range(3):
        rewards = random_rewards(seed)
        expected = sum(w * np.array(brute_force(rewards[name], normalization)) for name, w in WEIGHTS.items())
        composite = composite_reward(rewards, WEIGHTS, normalization)
        np.testing.assert_allclose(composite, expected, rtol=1e-9, atol=1e-12)
        assert np.isnan(composite[::7]).all() and np.isfinite(np.delete(composite, np.s_[::7])).all()


def test_offsets_cancel_and_scales_matter():
    """T3: a constant added to one reward changes neither advantages nor ranking; its normalised scale does."""
    rewards = {name: np.nan_to_num(scores.astype(np.float64), nan=1.0) for name, scores in random_rewards(1).items()}
    groups, variants = np.repeat(np.arange(12), 5), np.tile(np.arange(5), 12)
    frozen = normalization_constants(rewards)
    base = composite_reward(rewards, WEIGHTS, constants=frozen)
    advantages = group_advantages(base, groups, variants)
    shifted = composite_reward({**rewards, "pickscore": rewards["pickscore"] + 5}, WEIGHTS, constants=frozen)
    np.testing.assert_allclose(group_advantages(shifted, groups, variants), advantages, atol=1e-6)
    np.testing.assert_allclose(shifted - base, (shifted - base)[0])
    scaled = composite_reward({**rewards, "pickscore": rewards["pickscore"] * 5}, WEIGHTS, constants=frozen)
    assert np.abs(group_advantages(scaled, groups, variants) - advantages).max() > 0.1


@pytest.mark.parametrize("normalization", ["zscore", "minmax", "rank"])
def test_units_do_not_matter(normalization):
    rewards = random_rewards(4)
    in_percent = {**rewards, "hps_v2.1": rewards["hps_v2.1"].astype(np.float64) * 100 + 3}
    rewards["hps_v2.1"] = rewards["hps_v2.1"].astype(np.float64)
    np.testing.assert_allclose(
        composite_reward(in_percent, WEIGHTS, normalization),
        composite_reward(rewards, WEIGHTS, normalization),
        atol=1e-9,
    )


@pytest.mark.parametrize("normalization", ["zscore", "minmax", "rank"])
def test_constants_survive_json_and_apply_to_other_rows(normalization):
    rewards = random_rewards(5)
    constants = json.loads(json.dumps(normalization_constants(rewards, normalization), allow_nan=False))
    whole = composite_reward(rewards, WEIGHTS, normalization)
    part = {name: scores[10:20] for name, scores in rewards.items()}
    np.testing.assert_array_equal(composite_reward(part, WEIGHTS, normalization, constants), whole[10:20])
    assert constants["rewards"]["aesthetic"]["count"] == 60 - 9


@pytest.mark.parametrize("normalization", ["zscore", "minmax"])
def test_constant_reward_maps_to_zero(normalization):
    composite = composite_reward({"pickscore": [0.1] * 7}, {"pickscore": 1.0}, normalization)
    assert composite.tolist() == [0.0] * 7


def test_weightless_rewards_do_not_spoil_rows():
    rewards = {"pickscore": [1.0, 2.0], "aesthetic": [np.nan, 5.0]}
    assert composite_reward(rewards, {"pickscore": 1.0, "aesthetic": 0.0}).tolist() == [-1.0, 1.0]
    assert composite_reward(rewards, {"pickscore": 1.0}).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"pickscore": -0.4}, "--rewards: expected weights of at least 0, found pickscore=-0.4"),
        ({"pickscore": math.nan}, "--rewards: expected weights of at least 0, found pickscore=nan"),
        ({"pickscore": 0.0}, "--rewards: expected at least one weight above 0, found none"),
        ({}, "--rewards: expected at least one weight above 0, found none"),
        ({"mps": 1.0}, "--rewards: expected weights of scored rewards (pickscore), found 'mps'"),
    ],
)
def test_weight_errors(weights, text):
    with pytest.raises(ValueError) as error:
        composite_reward({"pickscore": [1.0, 2.0]}, weights)
    assert str(error.value) == text


def test_other_errors():
    with pytest.raises(
        ValueError, match="--reward_normalization: expected one of zscore, minmax, rank, found 'softmax'"
    ):
        composite_reward({"pickscore": [1.0]}, {"pickscore": 1.0}, "softmax")
    with pytest.raises(ValueError, match="reward 'pickscore': expected the score of at least one valid image"):
        composite_reward({"pickscore": [np.nan]}, {"pickscore": 1.0})
    constants = normalization_constants({"pickscore": [1.0, 2.0]})
    with pytest.raises(ValueError, match="--reward_normalization: expected 'zscore' as in the given constants"):
        composite_reward({"pickscore": [1.0]}, {"pickscore": 1.0}, "rank", constants)
    with pytest.raises(ValueError, match="normalisation constants: expected an entry for reward 'mps', found none"):
        composite_reward({"mps": [1.0]}, {"mps": 1.0}, constants=constants)
