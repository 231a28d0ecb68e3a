# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""How many candidates were left after each step of a build."""

from collections.abc import Mapping

import numpy as np

from .filtering import beats_baseline, rule_rewards, valid_rows
from .pool import ScoredPool


# What the counts of `funnel` are called, in their order.
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


def funnel(pool: ScoredPool) -> dict[str, int | float]:
    """What is left after each step, from prompts to the selected rows.

    Returns:
        `dict`: counts `prompts`, `groups` (prompts with a valid baseline and a valid refined image), `candidates` (all
        images), `valid`, `kept_groups`, `kept_candidates` (j >= 1), `selected`, `selected_prompts`,
        `selected_not_beating_own_baseline` (on the rule's rewards; on the composite for `"none"`), and
        `share_negative_advantages` (of the selected rows, 0 to 1).
    """
    groups, variants, selected = pool.groups, pool.variants, pool.selected
    valid = valid_rows({**pool.rewards, "composite": pool.composite}, len(groups))
    trainable = pool.kept & valid & (variants > 0)
    compared = {name: pool.rewards[name] for name in rule_rewards(pool.rule)} or {"composite": pool.composite}
    wins = beats_baseline(compared, groups, variants)
    usable = np.intersect1d(groups[valid & (variants == 0)], groups[valid & (variants > 0)])
    negative = pool.advantages[selected] < 0
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


def funnel_rows(counts: Mapping[str, int | float]) -> list[tuple[str, str]]:
    """Label and number of each step, as a reader sees them; a share is a float, everything else a number of rows."""
    known = ((label, counts.get(key)) for key, label in FUNNEL_LABELS.items())
    return [(label, f"{n:.1%}" if isinstance(n, float) else f"{n:,}") for label, n in known if n is not None]


def format_funnel(counts: Mapping[str, int | float]) -> str:
    """The funnel as lines of label and number."""
    return "\n".join(["Funnel", *(f"  {label:<64}{value:>9}" for label, value in funnel_rows(counts))])
