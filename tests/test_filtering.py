# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Filters, advantages and selection against brute force on random arrays with ties, and closed forms of the paper."""

import math

import numpy as np
import pytest

from diffusers_craft import composite_reward, crf_filter, group_advantages, select_samples
from diffusers_craft.selection.filtering import RULES, restrict_weights, rule_rewards
from diffusers_craft.selection.pool import funnel, funnel_rows, score_pool


NAMES = ("hps_v2.1", "pickscore", "aesthetic")


def random_pool(seed: int, num_groups: int = 30, num_variants: int = 5, invalid: float = 0.0):
    """A shuffled pool with many ties: small integer scores, NaN in every reward of invalid rows."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(rng.permutation(num_groups) * 3, num_variants)
    variants = np.tile(np.arange(num_variants), num_groups)
    order = rng.permutation(len(groups))
    bad = rng.random(len(groups)) < invalid
    rewards = {name: np.where(bad, np.nan, rng.integers(0, 4, len(groups)).astype(np.float32)) for name in NAMES}
    return rewards, groups[order], variants[order]


def brute_force_filter(rewards, groups, variants, required):
    kept = []
    valid = [not any(math.isnan(rewards[name][row]) for name in rewards) for row in range(len(groups))]
    for row in range(len(groups)):
        member = False
        for j in range(len(groups)):
            if groups[j] != groups[row] or variants[j] == 0 or not valid[j]:
                continue
            baseline = [b for b in range(len(groups)) if groups[b] == groups[row] and variants[b] == 0][0]
            member |= all(rewards[name][j] > rewards[name][baseline] for name in required)
        kept.append(member and valid[row])
    return np.array(kept)


@pytest.mark.parametrize("invalid", [0.0, 0.2])
@pytest.mark.parametrize("rule", [*RULES, ["hps_v2.1", "pickscore"]], ids=str)
def test_filter_agrees_with_brute_force(rule, invalid):
    for seed in range(4):
        rewards, groups, variants = random_pool(seed, invalid=invalid)
        required = RULES[rule] if isinstance(rule, str) else rule
        expected = brute_force_filter(rewards, groups, variants, required)
        np.testing.assert_array_equal(crf_filter(rewards, groups, variants, rule), expected)


def test_filter_subset_relations():
    rewards, groups, variants = random_pool(7, num_groups=200)
    kept = {rule: crf_filter(rewards, groups, variants, rule) for rule in RULES}
    for smaller, larger in [("hpa", "ha"), ("hpa", "pa"), ("ha", "h"), ("ha", "a"), ("pa", "p"), ("h", "none")]:
        assert not (kept[smaller] & ~kept[larger]).any()
        assert kept[smaller].sum() < kept[larger].sum()
    assert kept["none"].all()


def test_one_and_the_same_image_must_win_on_all_rewards():
    rewards = {"hps_v2.1": [0.0, 1.0, -1.0], "aesthetic": [0.0, -1.0, 1.0]}
    groups, variants = [5, 5, 5], [0, 1, 2]
    assert crf_filter(rewards, groups, variants, "h").all()
    assert crf_filter(rewards, groups, variants, "a").all()
    assert not crf_filter(rewards, groups, variants, "ha").any()


def test_a_tie_does_not_win():
    assert not crf_filter({"pickscore": [0.3, 0.3, 0.3]}, [0, 0, 0], [0, 1, 2], "p").any()


def test_group_with_invalid_baseline_keeps_nothing():
    rewards = {"pickscore": [np.nan, 1.0, 2.0, 0.0, 1.0]}
    kept = crf_filter(rewards, [0, 0, 0, 1, 1], [0, 1, 2, 0, 1], "p")
    assert kept.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("num_refined", [1, 4])
def test_null_rate_of_a_single_reward_filter(num_refined):
    """With exchangeable scores a group is kept unless its baseline is the best: N / (N + 1)."""
    num_groups = 20_000
    scores = np.random.default_rng(0).normal(size=num_groups * (num_refined + 1))
    groups = np.repeat(np.arange(num_groups), num_refined + 1)
    variants = np.tile(np.arange(num_refined + 1), num_groups)
    rate = crf_filter({"aesthetic": scores}, groups, variants, "a").mean()
    assert abs(rate - num_refined / (num_refined + 1)) < 4 * 0.5 / math.sqrt(num_groups)


def test_null_rate_of_hpa_for_independent_rewards():
    num_groups = 20_000
    rng = np.random.default_rng(1)
    rewards = {name: rng.normal(size=num_groups * 5) for name in NAMES}
    kept = crf_filter(rewards, np.repeat(np.arange(num_groups), 5), np.tile(np.arange(5), num_groups), "hpa")
    assert abs(kept.mean() - 0.33) < 0.015


def test_rule_rewards():
    assert rule_rewards("hpa") == NAMES
    assert rule_rewards(["ha"]) == ("hps_v2.1", "aesthetic")
    assert rule_rewards(["mps", "mps", "aesthetic"]) == ("mps", "aesthetic")
    assert rule_rewards("mps", scored=["mps"]) == ("mps",)
    with pytest.raises(ValueError) as error:
        rule_rewards("xyz")
    assert str(error.value) == "--filter_rule: expected one of h, p, a, ha, pa, hpa, none or reward names, found 'xyz'"


def test_filter_refuses_unscored_rewards():
    scores = {"hps_v2.1": [0.0, 1.0], "pickscore": [0.0, 1.0]}
    with pytest.raises(
        ValueError, match=r"--filter_rule: expected .* or scored rewards \(hps_v2.1, pickscore\), found"
    ):
        crf_filter(scores, [0, 0], [0, 1], ["mps"])
    with pytest.raises(ValueError, match="found rule 'hpa', which needs 'aesthetic'"):
        crf_filter(scores, [0, 0], [0, 1], "hpa")
    with pytest.raises(ValueError, match=r"reward 'pickscore': expected 2 scores, one a row, found shape \(1,\)"):
        crf_filter({**scores, "pickscore": [0.0]}, [0, 0], [0, 1], "h")


def advantages_of(composite) -> np.ndarray:
    """Advantages of one group; a baseline with an extreme score must not matter."""
    composite = [1e6, *composite]
    return group_advantages(composite, [3] * len(composite), range(len(composite)))[1:]


def test_advantages_closed_form():
    np.testing.assert_allclose(advantages_of([0, 1, 2, 3]), [-1.3416, -0.4472, 0.4472, 1.3416], atol=1e-4)
    assert advantages_of([0.1, 0.1, 0.1]).tolist() == [0, 0, 0]
    assert advantages_of([5.0]).tolist() == [0]


def test_advantages_agree_with_brute_force():
    for seed in range(5):
        rewards, groups, variants = random_pool(seed, invalid=0.15)
        composite = rewards["pickscore"]
        expected = np.zeros(len(groups))
        for group in np.unique(groups):
            rows = [r for r in range(len(groups)) if groups[r] == group and variants[r] > 0]
            rows = [r for r in rows if not np.isnan(composite[r])]
            values = composite[rows].astype(np.float64)
            expected[rows] = (values - values.mean()) / (values.std() + 1e-6) if rows else 0
        np.testing.assert_allclose(group_advantages(composite, groups, variants), expected, atol=1e-9)


def test_advantage_bounds_and_invariance():
    rng = np.random.default_rng(3)
    composite = rng.normal(size=5000)
    groups, variants = np.repeat(np.arange(1000), 5), np.tile(np.arange(5), 1000)
    advantages = group_advantages(composite, groups, variants).reshape(1000, 5)
    assert (advantages[:, 0] == 0).all()
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-9)
    assert np.abs(advantages).max() <= math.sqrt(3)
    assert advantages[:, 1:].max(1).min() >= 1 / math.sqrt(3) - 1e-4
    shift = np.repeat(rng.normal(size=1000) * 10, 5)
    moved = group_advantages(7 * composite + shift, groups, variants).reshape(1000, 5)
    np.testing.assert_allclose(moved, advantages, atol=1e-3)


def brute_force_selection(composite, mask, groups, variants, sign, k, max_per_prompt):
    rows = [r for r in range(len(groups)) if mask[r] and variants[r] > 0 and not math.isnan(composite[r])]
    rows.sort(key=lambda r: (sign * composite[r], groups[r], variants[r]))
    taken = []
    for row in rows:
        if not max_per_prompt or sum(groups[t] == groups[row] for t in taken) < max_per_prompt:
            taken.append(row)
    return taken[:k]


@pytest.mark.parametrize("max_per_prompt", [1, 2, 0, None])
@pytest.mark.parametrize(("strategy", "sign"), [("top", -1), ("low", 1)])
def test_selection_agrees_with_brute_force(strategy, sign, max_per_prompt):
    for seed in range(5):
        rewards, groups, variants = random_pool(seed, invalid=0.1)
        mask = crf_filter(rewards, groups, variants, "ha")
        composite = rewards["pickscore"] + rewards["aesthetic"]
        expected = brute_force_selection(composite, mask, groups, variants, sign, 8, max_per_prompt)
        selected = select_samples(composite, mask, groups, variants, strategy, 8, max_per_prompt)
        assert selected.tolist() == expected


def test_selection_of_all_and_none():
    rewards, groups, variants = random_pool(11)
    mask = crf_filter(rewards, groups, variants, "h")
    everything = select_samples(rewards["aesthetic"], mask, groups, variants, "all", 1, None)
    assert sorted(everything) == np.flatnonzero(mask & (variants > 0)).tolist()
    assert len(select_samples(rewards["aesthetic"], mask, groups, variants, k=0)) == 0
    assert len(select_samples(rewards["aesthetic"], np.zeros_like(mask), groups, variants, "all")) == 0


def test_random_selection_depends_on_the_seed_and_not_on_the_order_of_rows():
    rewards, groups, variants = random_pool(2)
    mask = np.ones(len(groups), dtype=bool)

    def chosen(seed, order):
        rows = select_samples(rewards["aesthetic"][order], mask, groups[order], variants[order], "random", 10, 1, seed)
        return [(groups[order][r], variants[order][r]) for r in rows]

    straight = np.arange(len(groups))
    assert chosen(0, straight) == chosen(0, straight[::-1])
    assert chosen(0, straight) != chosen(1, straight)
    assert len({group for group, _ in chosen(0, straight)}) == 10
    assert all(variant > 0 for _, variant in chosen(0, straight))


def test_selection_errors():
    composite, mask, groups, variants = [0.0, 1, 2, 0, 1, 2], [True] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2] * 2
    with pytest.raises(ValueError) as error:
        select_samples(composite, mask, groups, variants, k=3)
    assert str(error.value) == "--num_samples: expected at most 2 (what the filter kept, --max_per_prompt 1), found 3"
    with pytest.raises(ValueError, match=r"expected at most 4 \(what the filter kept\), found 5"):
        select_samples(composite, mask, groups, variants, k=5, max_per_prompt=None)
    with pytest.raises(ValueError, match="--num_samples: expected at least 0, found -1"):
        select_samples(composite, mask, groups, variants, k=-1)
    with pytest.raises(ValueError, match="--selection: expected one of top, random, low, all, found 'best'"):
        select_samples(composite, mask, groups, variants, "best")
    with pytest.raises(ValueError, match="--max_per_prompt: expected at least 0"):
        select_samples(composite, mask, groups, variants, k=1, max_per_prompt=-1)


def test_restrict_weights():
    weights = {"hps_v2.1": 0.4, "pickscore": 0.4, "aesthetic": 0.2}
    assert restrict_weights(weights, "hpa") == weights
    assert restrict_weights(weights, "none") == weights
    assert restrict_weights(weights, "ha") == pytest.approx({"hps_v2.1": 2 / 3, "aesthetic": 1 / 3})
    with pytest.raises(ValueError, match=r"a weight above 0 for a reward of --filter_rule \(pickscore\), found none"):
        restrict_weights({"hps_v2.1": 1.0}, "p")
    with pytest.raises(ValueError, match="at least one weight above 0"):
        restrict_weights({"hps_v2.1": 0.0}, "none")


@pytest.mark.parametrize(("rule", "own"), [("hpa", "my_reward"), (["pickscore"], "mps"), ("ha", "clip_score")])
def test_a_weight_that_would_change_nothing_is_refused(rule, own):
    """The composite is of the filter's rewards; the paper's own three may be left out, as in its ablation."""
    paper = {"hps_v2.1": 0.4, "pickscore": 0.4, "aesthetic": 0.2}
    with pytest.raises(
        ValueError, match=f"^--rewards: expected weights of .*, found {own}=1000; name {own} in --filter"
    ):
        restrict_weights(paper | {own: 1000.0}, rule)
    assert own not in restrict_weights(paper | {own: 0.0}, rule)
    assert restrict_weights(paper | {own: 1.0}, [*rule_rewards(rule), own])[own] > 0
    assert restrict_weights(paper | {own: 1.0}, "none")[own] == 0.5


@pytest.mark.parametrize("rule", ["none", "pa"])
def test_a_reward_that_does_not_count_may_abstain(rule):
    """It neither excludes an image nor changes its group's statistics, be it silent on some images or on all."""
    rewards, groups, variants = random_pool(5, invalid=0.1)
    weights = {"pickscore": 0.5, "aesthetic": 0.5, "judge": 0.0}
    used = {name: rewards[name] for name in ("pickscore", "aesthetic")}
    expected = score_pool(used, groups, variants, dict.fromkeys(used, 0.5), rule, k=5)
    some = np.where(np.arange(len(groups)) % 2, 1.0, np.nan)
    for judge in (some, np.full(len(groups), np.nan)):
        pool = score_pool({**used, "judge": judge}, groups, variants, weights, rule, k=5)
        for name in ("composite", "kept", "advantages", "selected"):
            np.testing.assert_array_equal(getattr(pool, name), getattr(expected, name))
        assert funnel(pool) == funnel(expected)
        assert ("judge" in pool.constants["rewards"]) == np.isfinite(judge).any()


def test_a_reward_of_the_rule_counts_without_weight():
    """An image without its score cannot be compared: it is not valid, and no sibling's advantage depends on it."""
    rewards = {"pickscore": np.array([0.0, 1.0, 2.0, 9.0]), "aesthetic": np.array([0.0, 1.0, 1.0, np.nan])}
    weights = {"pickscore": 1.0, "aesthetic": 0.0}
    pool = score_pool(rewards, np.zeros(4, int), np.arange(4), weights, "pa", k=1)
    assert pool.valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(pool.advantages, [0, -1, 1, 0], atol=1e-4)
    assert pool.selected.tolist() == [2]


def test_an_only_image_has_no_advantage_and_takes_no_place():
    nan = np.nan
    groups, variants = np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)
    composite = np.array([0.0, 9.0, nan, 0.0, 1.0, 2.0, 0.0, nan, nan])
    assert group_advantages(composite, groups, variants)[1] == 0
    mask = np.ones(9, dtype=bool)
    for strategy in ("top", "all", "random", "low"):
        assert select_samples(composite, mask, groups, variants, strategy, 1)[0] in (4, 5)
    with pytest.raises(ValueError, match="--num_samples: expected at most 1 "):
        select_samples(composite, mask, groups, variants, k=2)
    one = select_samples([0.0, 1.0, 0.0, 2.0], [True] * 4, [0, 0, 1, 1], [0, 1, 0, 1], k=2)
    assert one.tolist() == [3, 1], "a build with one image a prompt has chosen so"


def test_what_rounding_leaves_is_no_advantage():
    rng = np.random.default_rng(0)
    low, high = rng.normal(size=2000), rng.normal(size=2000)
    composite = np.stack([np.zeros(2000), low, high, (low + high) / 2], 1).ravel()
    found = group_advantages(composite, np.repeat(np.arange(2000), 4), np.tile(np.arange(4), 2000)).reshape(-1, 4)
    assert (found[:, 3] == 0).all() and (np.abs(found[:, 1]) > 1).all()


def test_funnel_counts():
    nan = np.nan
    groups = np.repeat([0, 1, 2, 3], 3)
    variants = np.tile([0, 1, 2], 4)
    #                 group 0: kept     1: no winner     2: no baseline   3: kept, one image not valid
    scores = np.array([0.0, 2.0, -1.0, 1.0, 0.5, 1.0, nan, 3.0, 4.0, 0.0, nan, 1.0])
    rewards = {"aesthetic": scores}
    pool = score_pool(rewards, groups, variants, {"aesthetic": 1.0}, "a", strategy="all", max_per_prompt=None)
    counts = funnel(pool)
    assert counts == {
        "prompts": 4,
        "groups": 3,
        "candidates": 12,
        "valid": 10,
        "trainable": 5,
        "kept_groups": 2,
        "kept_candidates": 3,
        "selected": 2,
        "selected_prompts": 1,
        "share_negative_advantages": pytest.approx(1 / 2),
        "selected_not_beating_own_baseline": 1,
    }
    assert funnel_rows(counts)[2:4] == [("candidate images", "12"), ("valid images", "10")]
    assert ("share of negative advantages", "50.0%") in funnel_rows(counts)
    refined = funnel(pool, num_failures=3)
    assert ("candidate images of refined prompts", "5 of 8") in funnel_rows(refined)
    assert (refined["refined"], refined["refinements"]) == (5, 8)
    everything = funnel(score_pool(rewards, groups, variants, {"aesthetic": 1.0}, "none", strategy="all"))
    assert everything["kept_candidates"] == everything["trainable"] == 7, "a rule that drops nothing keeps 100 %"
    assert everything["kept_groups"] == everything["groups"] == 4
    empty = funnel(score_pool(rewards, groups, variants, {"aesthetic": 1.0}, "none", k=0))
    assert empty["selected"] == 0 and empty["share_negative_advantages"] == 0.0


def test_a_scored_pool_is_what_its_steps_give():
    """Only the rule's rewards count in the composite reward; a pool may be filtered by another rule."""
    rewards, groups, variants = random_pool(3, invalid=0.1)
    weights = {"hps_v2.1": 0.4, "pickscore": 0.4, "aesthetic": 0.2}
    pool = score_pool(rewards, groups, variants, weights, "ha", "rank", "random", 5, 2, seed=4)
    assert pool.weights == pytest.approx({"hps_v2.1": 2 / 3, "aesthetic": 1 / 3})
    composite = composite_reward(rewards, pool.weights, "rank", pool.constants)
    np.testing.assert_array_equal(pool.composite, composite)
    np.testing.assert_array_equal(pool.kept, crf_filter(rewards, groups, variants, "ha"))
    np.testing.assert_array_equal(pool.advantages, group_advantages(composite, groups, variants))
    chosen = select_samples(composite, pool.kept, groups, variants, "random", 5, 2, seed=4)
    np.testing.assert_array_equal(pool.selected, chosen)
    assert list(pool.columns) == [*NAMES, "reward", "advantage"]
