# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The composite reward of images that did not exist before, for objectives that ask for one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..core.files import read_json
from ..core.workdir import CONSTANTS_FILE
from ..errors import UserError
from ..rewards.settings import RewardSettings, load_rewards, parse_reward_weights
from ..selection.composite import composite_reward
from .run import as_array


class CompositeScorer:
    """A weighted sum of rewards, normalised by `constants` (a build's `normalization.json`), raw without them."""

    def __init__(
        self, models: Mapping[str, Any], weights: Mapping[str, float], constants: Mapping[str, Any] | None = None
    ) -> None:
        missing = [name for name in weights if constants is not None and name not in constants["rewards"]]
        if missing:
            known = ", ".join(constants["rewards"])
            raise UserError(f"--rewards: expected rewards that the build scored ({known}), found {missing[0]!r}")
        self.models, self.weights, self.constants = models, weights, constants

    def score(self, prompts: list[str], images: list[Image.Image]) -> np.ndarray:
        """(B,) float64 composite rewards."""
        rewards = {name: as_array(self.models[name].score(prompts, images)) for name in self.weights}
        if self.constants is None:
            return sum(weight * np.asarray(rewards[name], np.float64) for name, weight in self.weights.items())
        return composite_reward(rewards, self.weights, self.constants["normalization"], self.constants)


def load_scorer(
    rewards: Sequence[str], settings: RewardSettings, device: torch.device, base: str, dataset_name: str | None
) -> CompositeScorer:
    """Rewards, each `name=weight`, for images of the model `base`; normalised as in the build `dataset_name`, if it is one."""
    weights = parse_reward_weights(rewards)
    models = load_rewards(list(weights), settings, device, base)
    constants = Path(dataset_name or "") / CONSTANTS_FILE
    return CompositeScorer(models, weights, read_json(constants) if constants.is_file() else None)
