# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A scored pool of candidates, from raw rewards to the selected rows (CRAFT, arXiv 2603.18991, algorithm 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .composite import composite_reward, normalization_constants
from .filtering import crf_filter, group_advantages, restrict_weights, select_samples


@dataclass(frozen=True)
class ScoredPool:
    """All n candidates of a build, their scores and which k are selected. Arrays are flat, one row per candidate.

    Args:
        groups (`np.ndarray`): (n,) prompt index i.
        variants (`np.ndarray`): (n,) j within the group; 0 is the image of the original prompt.
        rewards (`Mapping[str, np.ndarray]`): reward name to (n,) raw scores; NaN where the image is not valid.
        composite (`np.ndarray`): (n,) composite reward; NaN where the image is not valid.
        advantages (`np.ndarray`): (n,) group advantages.
        kept (`np.ndarray`): (n,) bool, what the filter rule keeps.
        selected (`np.ndarray`): (k,) row indices in the order of selection.
        rule (`str` or `Sequence[str]`): the filter rule.
        weights (`Mapping[str, float]`): weights of the composite reward.
        constants (`Mapping[str, Any]`): of the rewards' normalisation.
    """

    groups: np.ndarray
    variants: np.ndarray
    rewards: Mapping[str, np.ndarray]
    composite: np.ndarray
    advantages: np.ndarray
    kept: np.ndarray
    selected: np.ndarray
    rule: str | Sequence[str]
    weights: Mapping[str, float]
    constants: Mapping[str, Any]

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
    """Composite reward of the rule's rewards, filter, advantages and selection; see the functions of these names.

    Raises:
        UserError: if one of them refuses its options, or fewer rows are left than asked for.
    """
    weights = restrict_weights(weights, rule)
    constants = normalization_constants(rewards, normalization)
    composite = composite_reward(rewards, weights, normalization, constants)
    kept = crf_filter(rewards, groups, variants, rule)
    advantages = group_advantages(composite, groups, variants)
    selected = select_samples(composite, kept, groups, variants, strategy, k, max_per_prompt, seed)
    return ScoredPool(groups, variants, rewards, composite, advantages, kept, selected, rule, weights, constants)
