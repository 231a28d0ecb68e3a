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
    "refined": "candidate images of refined prompts",
    "valid": "valid images",
    "trainable": "valid images that a filter can keep",
    "kept_groups": "groups kept by the filter",
    "kept_candidates": "images in kept groups",
    "selected": "selected images",
    "selected_prompts": "prompts of the selected images",
    "share_negative_advantages": "share of negative advantages",
    "selected_not_beating_own_baseline": "selected, but not better than the image of their original prompt",
}
_OUT_OF = {"refined": "refinements"}  # counts that are shown with another one: n of m
_WIDTH = 73  # letters of a printed line


@dataclass(frozen=True)
class ScoredPool:
    """All n candidates of a build, their scores and which k are selected; NaN where an image is not valid."""

    groups: np.ndarray  # (n,) prompt index i
    variants: np.ndarray  # (n,) j within the group; 0 is the image of the original prompt
    rewards: Mapping[str, np.ndarray]  # reward name to (n,) raw scores
    composite: np.ndarray  # (n,), NaN without all rewards of the composite and of the rule
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

    @property
    def valid(self) -> np.ndarray:
        """(n,) bool: images with all rewards that count."""
        return ~np.isnan(self.composite)


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
    """Composite reward of the rule's rewards, filter, advantages and selection; see the functions of these names.

    Rewards that do not count may abstain: an image without their scores is as good as any other.
    """
    weights = filtering.restrict_weights(weights, rule)
    counting = {*(name for name, weight in weights.items() if weight), *filtering.rule_rewards(rule)}
    used = {name: scores for name, scores in rewards.items() if name in counting}
    silent = {name for name, scores in rewards.items() if not np.isfinite(scores).any()} - counting
    constants = normalization_constants({n: s for n, s in rewards.items() if n not in silent}, normalization)
    composite = composite_reward(rewards, weights, normalization, constants)
    composite[~filtering.valid_rows(used, len(groups))] = np.nan
    kept = filtering.crf_filter(used, groups, variants, rule)
    advantages = filtering.group_advantages(composite, groups, variants)
    selected = filtering.select_samples(composite, kept, groups, variants, strategy, k, max_per_prompt, seed)
    return ScoredPool(groups, variants, rewards, composite, advantages, kept, selected, rule, weights, constants)


def funnel(pool: ScoredPool, num_failures: int | None = None) -> dict[str, int | float]:
    """How many prompts and images each step left, as `FUNNEL_LABELS` names them.

    A group counts with a valid refined image and, where a rule needs one, a valid baseline; a kept image with j >= 1. A
    selected image is compared with its baseline on the rule's rewards; on the composite for `"none"`. With the
    number of refinements that failed it tells how many there are. `share_negative_advantages` is of the selected
    rows, 0 to 1.
    """
    groups, variants, selected, valid = pool.groups, pool.variants, pool.selected, pool.valid
    num_refinements = int((variants > 0).sum())
    made = {} if num_failures is None else {"refined": num_refinements - num_failures, "refinements": num_refinements}
    names = filtering.rule_rewards(pool.rule)
    compared = {name: pool.rewards[name] for name in names} or {"composite": pool.composite}
    wins = filtering.beats_baseline(compared, groups, variants)
    usable = np.unique(groups[valid & (variants > 0)])
    if names:
        usable = np.intersect1d(usable, groups[valid & (variants == 0)])
    trainable = valid & (variants > 0) & np.isin(groups, usable)
    kept = pool.kept & trainable
    negative = pool.advantages[selected] < 0
    return {
        "prompts": len(np.unique(groups)),
        "groups": len(usable),
        "candidates": len(groups),
        **made,
        "valid": int(valid.sum()),
        "trainable": int(trainable.sum()),
        "kept_groups": len(np.unique(groups[kept])),
        "kept_candidates": int(kept.sum()),
        "selected": len(selected),
        "selected_prompts": len(np.unique(groups[selected])),
        "share_negative_advantages": float(negative.mean()) if len(selected) else 0.0,
        "selected_not_beating_own_baseline": int((~wins[selected]).sum()),
    }


def funnel_rows(counts: Mapping[str, int | float]) -> list[tuple[str, str]]:
    """Label and number of each step, as a reader sees them; a share is a float, everything else a number of rows."""

    def text(key: str) -> str:
        number = f"{counts[key]:.1%}" if isinstance(counts[key], float) else f"{counts[key]:,}"
        return f"{number} of {counts[_OUT_OF[key]]:,}" if key in _OUT_OF else number

    return [(label, text(key)) for key, label in FUNNEL_LABELS.items() if key in counts]


def format_funnel(counts: Mapping[str, int | float]) -> str:
    """The funnel as lines of label and number."""
    return "\n".join(["Funnel", *(f"  {label}{value:>{_WIDTH - len(label)}}" for label, value in funnel_rows(counts))])
