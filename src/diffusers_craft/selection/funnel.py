# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""How many candidates were left after each step of a build."""

from collections.abc import Mapping, Sequence

import numpy as np

from .filtering import _beats_baseline, _valid, rule_rewards


def format_funnel(counts: Mapping[str, float]) -> str:
    """The funnel as lines of label and number."""
    lines = []
    for key, label in FUNNEL_LABELS.items():
        if key in counts:
            value = f"{counts[key]:.1%}" if isinstance(counts[key], float) else f"{counts[key]:,}"
            lines.append(f"  {label:<64}{value:>9}")
    return "\n".join(["Funnel", *lines])


def funnel(
    rewards: Mapping[str, Sequence[float]],
    composite: Sequence[float],
    mask: Sequence[bool],
    advantages: Sequence[float],
    selected: Sequence[int],
    groups: Sequence[int],
    variants: Sequence[int],
    rule: str | Sequence[str] = "hpa",
) -> dict[str, int | float]:
    """What is left after each step, from prompts to the selected rows.

    Args:
        rewards (`Mapping[str, Sequence[float]]`): (n,) raw scores of each reward.
        composite (`Sequence[float]`): (n,) from `composite_reward`.
        mask (`Sequence[bool]`): (n,) from `crf_filter`.
        advantages (`Sequence[float]`): (n,) from `group_advantages`.
        selected (`Sequence[int]`): (k,) from `select_samples`.
        groups (`Sequence[int]`): (n,) prompt index i.
        variants (`Sequence[int]`): (n,) j within the group.
        rule (`str` or `Sequence[str]`, *optional*, defaults to `"hpa"`): the filter rule.

    Returns:
        `dict`: counts `prompts`, `groups` (prompts with a valid baseline and a valid refined image), `candidates` (all
        images), `valid`, `kept_groups`, `kept_candidates` (j >= 1), `selected`, `selected_prompts`,
        `selected_not_beating_own_baseline` (on the rule's rewards; on the composite for `"none"`), and
        `share_negative_advantages` (of the selected rows, 0 to 1).
    """
    groups, variants, selected = np.asarray(groups), np.asarray(variants), np.asarray(selected, dtype=np.int64)
    valid = _valid({**rewards, "composite": composite}, len(groups))
    trainable = np.asarray(mask, dtype=bool) & valid & (variants > 0)
    required = rule_rewards(rule, rewards)
    compared = {name: rewards[name] for name in required} or {"composite": composite}
    wins = _beats_baseline(compared, groups, variants)
    usable = np.intersect1d(groups[valid & (variants == 0)], groups[valid & (variants > 0)])
    negative = np.asarray(advantages)[selected] < 0
    return {
        "prompts": len(np.unique(groups)),
        "groups": len(usable),
        "candidates": len(groups),
        "valid": int(valid.sum()),
        "kept_groups": len(np.unique(groups[trainable])),
        "kept_candidates": int(trainable.sum()),
        "selected": len(selected),
        "selected_prompts": len(np.unique(groups[selected])),
        "share_negative_advantages": float(negative.mean()) if len(selected) else 0.0,
        "selected_not_beating_own_baseline": int((~wins[selected]).sum()),
    }


# What the counts of `filtering.funnel` are called, in their order.
FUNNEL_LABELS = {
    "prompts": "prompts",
    "groups": "groups",
    "candidates": "candidate images",
    "valid": "valid images",
    "kept_groups": "groups kept by the filter",
    "kept_candidates": "images in kept groups",
    "selected": "selected images",
    "selected_prompts": "prompts of the selected images",
    "share_negative_advantages": "share of negative advantages",
    "selected_not_beating_own_baseline": "selected, but not better than the image of their original prompt",
}
