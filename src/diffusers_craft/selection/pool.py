# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A scored pool of candidates, from raw rewards to the selected rows, and how many each step left (CRAFT, algorithm 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import filtering
from .composite import composite_reward, normalization_constants


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


@dataclass(frozen=True)
class ScoredPool:
    """All n candidates of a build, their scores and which k are selected; NaN where an image is not valid."""

    groups: np.ndarray  # (n,) prompt index i
    variants: np.ndarray  # (n,) j within the group; 0 is the image of the original prompt
    rewards: Mapping[str, np.ndarray]  # reward name to (n,) raw scores
    composite: np.ndarray  # (n,)
    advantages: np.ndarray  # (n,)
    kept: np.ndarray  # (n,) bool, what the filter rule keeps
    selected: np.ndarray  # (k,) row indices in the order of selection
    rule: str | Sequence[str]
    weights: Mapping[str, float]  # of the composite reward
    constants: Mapping[str, Any]  # of the rewards' normalisation

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Name to (n,) values: the raw rewards, `reward` (composite) and `advantage`."""
        return {**self.rewards, "reward": self.composite, "advantage": self.advantages}


def score_pool(
    rewards: Mapping[str, np.ndarray],
    groups: np.ndarray,
    variants: np.ndarray,
    weights: Mapping[str, float],
    rule: str | Sequence[str] = "hpa",
    normalization: str = "zscore",
    strategy: str = "top",
    k: int = 100,
    max_per_prompt: int | None = 1,
    seed: int = 0,
) -> ScoredPool:
    """Composite reward of the rule's rewards, filter, advantages and selection; see the functions of these names."""
    weights = filtering.restrict_weights(weights, rule)
    constants = normalization_constants(rewards, normalization)
    composite = composite_reward(rewards, weights, normalization, constants)
    kept = filtering.crf_filter(rewards, groups, variants, rule)
    advantages = filtering.group_advantages(composite, groups, variants)
    selected = filtering.select_samples(composite, kept, groups, variants, strategy, k, max_per_prompt, seed)
    return ScoredPool(groups, variants, rewards, composite, advantages, kept, selected, rule, weights, constants)


def funnel(pool: ScoredPool) -> dict[str, int | float]:
    """How many prompts and images each step left, as `FUNNEL_LABELS` names them.

    A group counts with a valid baseline and a valid refined image, a kept image with j >= 1. A selected image is
    compared with its baseline on the rule's rewards; on the composite for `"none"`. `share_negative_advantages` is of
    the selected rows, 0 to 1.
    """
    groups, variants, selected = pool.groups, pool.variants, pool.selected
    valid = filtering.valid_rows({**pool.rewards, "composite": pool.composite}, len(groups))
    trainable = pool.kept & valid & (variants > 0)
    names = filtering.rule_rewards(pool.rule)
    compared = {name: pool.rewards[name] for name in names} or {"composite": pool.composite}
    wins = filtering.beats_baseline(compared, groups, variants)
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
