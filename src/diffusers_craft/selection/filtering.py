# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Which candidates to train on, and how much (CRAFT, arXiv 2603.18991, sections 3.2-3.3): filters, advantages, pairs.

Arrays are flat, one row per candidate: `groups` is the prompt index i, `variants` is j, where 0 is the image of the
original prompt (threshold only, never trained on). An image that is not valid has NaN in every reward.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..errors import UserError
from .composite import check_weights, score_column


# S of eq. 4: the rewards on which one and the same refined image must win.
RULES: dict[str, tuple[str, ...]] = {
    "h": ("hps_v2.1",),
    "p": ("pickscore",),
    "a": ("aesthetic",),
    "ha": ("hps_v2.1", "aesthetic"),
    "pa": ("pickscore", "aesthetic"),
    "hpa": ("hps_v2.1", "pickscore", "aesthetic"),
    "none": (),
}
_PAPER_REWARDS = RULES["hpa"]  # those of them that a rule leaves out do not count, as in the paper's ablation
STRATEGIES = ("top", "random", "low", "all")
PAIRINGS = ("best_worst", "best_baseline")
ADVANTAGE_EPS = 1e-6
_NO_ADVANTAGE = 1e-9  # standard deviations; less is what rounding leaves of 0


def rule_rewards(rule: str | Sequence[str], scored: Collection[str] | None = None) -> tuple[str, ...]:
    """The rewards that a filter rule (key of `RULES`, or reward names) compares; it may name only what is `scored`."""
    names = (rule,) if isinstance(rule, str) else tuple(rule)
    known_rule = len(names) == 1 and names[0] in RULES
    required = RULES[names[0]] if known_rule else tuple(dict.fromkeys(names))
    rewards, known = "reward names", required if known_rule or not isinstance(rule, str) else ()
    if scored is not None:
        rewards, known = f"scored rewards ({', '.join(scored)})", scored
    unknown = [name for name in required if name not in known]
    if unknown:
        what = f"rule {names[0]!r}, which needs {unknown[0]!r}" if known_rule else repr(unknown[0])
        raise UserError(f"--filter_rule: expected one of {', '.join(RULES)} or {rewards}, found {what}")
    return required


def restrict_weights(weights: Mapping[str, float], rule: str | Sequence[str] = "none") -> dict[str, float]:
    """The weights of the rewards that a filter rule compares, scaled to sum 1; of all rewards for `"none"`.

    The composite reward is that of the filter's rewards (section 3.3), so the weight of another one would change nothing:
    it is a `UserError`, but for the paper's own three.
    """
    check_weights(weights, weights)
    required = rule_rewards(rule)
    outside = [name for name, weight in weights.items() if weight and name not in (*required, *_PAPER_REWARDS)]
    if required and outside:
        wanted = f"expected weights of the rewards that --filter_rule compares ({', '.join(required)})"
        advice = f"name {outside[0]} in --filter_rule too, or give {outside[0]}=0 to score it only"
        raise UserError(f"--rewards: {wanted}, found {outside[0]}={weights[outside[0]]:g}; {advice}")
    kept = {name: float(weight) for name, weight in weights.items() if not required or name in required}
    total = sum(kept.values())
    if total <= 0:
        names = ", ".join(required)
        raise UserError(f"--rewards: expected a weight above 0 for a reward of --filter_rule ({names}), found none")
    return {name: weight / total for name, weight in kept.items()}


def valid_rows(rewards: Mapping[str, Sequence[float]], length: int) -> np.ndarray:
    """(n,) bool: rows that have every reward."""
    columns = [score_column(name, scores, length) for name, scores in rewards.items()]
    return ~np.isnan(columns).any(axis=0)


def beats_baseline(columns: Mapping[str, np.ndarray], groups: np.ndarray, variants: np.ndarray) -> np.ndarray:
    """(n,) bool: rows j >= 1 that score strictly higher than their group's j = 0 on every column."""
    unique, index = np.unique(groups, return_inverse=True)
    is_baseline = variants == 0
    wins = variants > 0
    for name, scores in columns.items():
        column = score_column(name, scores, len(groups))
        baseline = np.full(len(unique), np.nan)
        baseline[index[is_baseline]] = column[is_baseline]
        wins &= column > baseline[index]  # False wherever either side is NaN
    return wins


def crf_filter(
    rewards: Mapping[str, Sequence[float]],
    groups: Sequence[int],
    variants: Sequence[int],
    rule: str | Sequence[str] = "hpa",
) -> np.ndarray:
    """Composite reward filter, eq. 4: keeps a group if one refined image beats the baseline on all its rewards.

    The same j >= 1 must win on every required reward, strictly. Membership is decided per group: all valid images of a
    kept group are members, also the baseline j = 0, which `select_samples` never takes. Only rewards of the rule decide
    what is valid; all of them for `"none"`.

    Args:
        rewards (`Mapping[str, Sequence[float]]`): (n,) raw scores of each reward; NaN where the image is not valid.
        groups, variants (`Sequence[int]`): (n,) prompt index i; (n,) j within the group, where 0 is the baseline.
        rule (`str` or `Sequence[str]`, *optional*, defaults to `"hpa"`): a key of `RULES` or reward names.

    Returns:
        `np.ndarray`: (n,) bool.

    Raises:
        UserError: if the rule is unknown or names a reward that was not scored.
    """
    required = rule_rewards(rule, rewards)
    groups, variants = np.asarray(groups), np.asarray(variants)
    columns = {name: score_column(name, scores, len(groups)) for name, scores in rewards.items()}
    compared = {name: columns[name] for name in required}
    valid = valid_rows(compared or columns, len(groups))
    wins = valid & beats_baseline(compared, groups, variants)
    return valid & np.isin(groups, groups[wins])


def group_advantages(composite: Sequence[float], groups: Sequence[int], variants: Sequence[int]) -> np.ndarray:
    """Group-relative advantages, algorithm 1: (r - mean) / (std + 1e-6) over the images j >= 1 of each complete group.

    Args:
        composite (`Sequence[float]`): (n,) composite reward of all candidates, before any filter; NaN if not valid.
        groups, variants (`Sequence[int]`): (n,) prompt index i; (n,) j within the group.

    Returns:
        `np.ndarray`: (n,) float64, by the population standard deviation; 0 for j = 0 and images that are not valid.
    """
    groups, variants = np.asarray(groups), np.asarray(variants)
    composite = score_column("composite", composite, len(groups))
    rows = np.flatnonzero((variants > 0) & ~np.isnan(composite))
    _, index = np.unique(groups[rows], return_inverse=True)
    count = np.bincount(index)
    # Relative to the group's minimum, so that a constant group gives exact zeros.
    lowest = np.full(len(count), np.inf)
    np.minimum.at(lowest, index, composite[rows])
    centered = composite[rows] - lowest[index]
    centered -= (np.bincount(index, centered) / count)[index]
    std = np.sqrt(np.bincount(index, centered**2) / count)
    advantages = np.zeros(len(groups))
    advantages[rows] = centered / (std[index] + ADVANTAGE_EPS)
    advantages[np.abs(advantages) < _NO_ADVANTAGE] = 0
    return advantages


def select_samples(
    composite: Sequence[float],
    mask: Sequence[bool],
    groups: Sequence[int],
    variants: Sequence[int],
    strategy: str = "top",
    k: int = 100,
    max_per_prompt: int | None = 1,
    seed: int = 0,
) -> np.ndarray:
    """The rows to train on (section 3.3, table 5): never j = 0, never an image that is not valid.

    Nor one whose siblings j >= 1 are all not valid: there is nothing that it could be better than, its advantage is 0.
    Rows are ordered (`"top"`: highest composite first, `"low"`: lowest first, `"random"`: shuffled), at most
    `max_per_prompt` of a group are taken in this order, and the first `k` of these are selected. Ties stand in order
    of (group, variant), so the result does not depend on the order of the rows.

    Args:
        composite (`Sequence[float]`): (n,) composite reward; NaN if not valid.
        mask (`Sequence[bool]`): (n,) what the filter kept.
        groups, variants (`Sequence[int]`): (n,) prompt index i; (n,) j within the group.
        strategy (`str`, *optional*, defaults to `"top"`): as above, or `"all"`: top without the limit `k`.
        k (`int`, *optional*, defaults to `100`): number of rows.
        max_per_prompt (`int`, *optional*, defaults to `1`): most rows of one group; `None` or 0 is no limit.
        seed (`int`, *optional*, defaults to `0`): of strategy `"random"`.

    Returns:
        `np.ndarray`: (k,) int64 row indices in the order of selection.

    Raises:
        UserError: if the strategy is unknown or `k` exceeds what is available.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"--selection: expected one of {', '.join(STRATEGIES)}, found {strategy!r}")
    if max_per_prompt is not None and max_per_prompt < 0:
        raise UserError(f"--max_per_prompt: expected at least 0 (0 is no limit), found {max_per_prompt}")
    groups, variants = np.asarray(groups), np.asarray(variants)
    composite = score_column("composite", composite, len(groups))
    alone = _lost_siblings(composite, groups, variants)
    rows = np.flatnonzero(np.asarray(mask, dtype=bool) & (variants > 0) & ~np.isnan(composite) & ~alone)
    if strategy == "random":
        rows = rows[np.lexsort((variants[rows], groups[rows]))]
        rows = np.random.default_rng(seed).permutation(rows)
    else:
        key = composite[rows] if strategy == "low" else -composite[rows]
        rows = rows[np.lexsort((variants[rows], groups[rows], key))]
    if max_per_prompt:
        rows = rows[_occurrence(groups[rows]) < max_per_prompt]
    if strategy == "all":
        return rows
    if k < 0:
        raise UserError(f"--num_samples: expected at least 0, found {k}")
    if k > len(rows):
        limit = f", --max_per_prompt {max_per_prompt}" if max_per_prompt else ""
        raise UserError(f"--num_samples: expected at most {len(rows)} (what the filter kept{limit}), found {k}")
    return rows[:k]


def _lost_siblings(composite: np.ndarray, groups: np.ndarray, variants: np.ndarray) -> np.ndarray:
    """(n,) bool: rows of groups that have one valid image j >= 1, out of several."""
    unique, index = np.unique(groups, return_inverse=True)
    refined = variants > 0
    made, valid = (
        np.bincount(index[rows], minlength=len(unique)) for rows in (refined, refined & ~np.isnan(composite))
    )
    return ((made > 1) & (valid == 1))[index]


def _occurrence(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each value: (5, 7, 5, 5) -> (0, 0, 1, 2)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    occurrence = np.empty(len(values), dtype=np.int64)
    occurrence[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return occurrence


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
        groups, variants (`Sequence[int]`): (n,) prompt index i; (n,) j within the group.
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
