# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CRAFT's advantage-weighted denoising loss (arXiv 2603.18991, algorithm 1, step 4); SFT is its weight-one case."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import Batch, LossOutput, Objective, denoising_errors


def craft_loss(
    model_pred: torch.Tensor,
    target: torch.Tensor,
    advantages: torch.Tensor,
    timestep_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """mean_B(w_t * A * mean_CHW((prediction - target)^2)): the denoising error, weighted by each row's advantage.

    The sum is divided by the number of rows, not by the sum of the weights: weights of one give plain fine-tuning, and
    equal micro-batches may be averaged. A negative advantage makes the model unlearn its row. A float32 scalar.

    Args:
        model_pred (`torch.Tensor`): (B, C, H, W) prediction of the UNet.
        target (`torch.Tensor`): (B, C, H, W) noise, velocity or sample, as the model predicts.
        advantages (`torch.Tensor`): (B,) weights.
        timestep_weights (`torch.Tensor`, *optional*): (B,) w_t, e.g. of `NoisePath.min_snr_weights`; the default is 1.
    """
    errors = denoising_errors(model_pred, target)
    if timestep_weights is not None:
        errors = timestep_weights.float() * errors
    return (advantages.float() * errors).mean()


def transform_advantages(advantages: torch.Tensor, clip_min: float | None = None) -> torch.Tensor:
    """(n,) `craft_loss` weights; the paper has no `clip_min`: 0 unlearns no row, which makes its theorem 3.1 hold."""
    return advantages if clip_min is None else advantages.clamp(min=clip_min)


@dataclass
class CRAFT(Objective):
    """CRAFT: `craft_loss` of single images, weighted by their advantages.

    Args:
        advantage_clip_min (`float`, *optional*): Lower bound of the advantages; 0 unlearns nothing. The default
            keeps negative ones, as the paper does.
    """

    advantage_clip_min: float | None = None
    name: ClassVar[str] = "craft"
    title: ClassVar[str] = "CRAFT"
    paper: ClassVar[str] = "2603.18991"
    uses_timestep_weights: ClassVar[bool] = True
    remedy: ClassVar[str] = "--advantage_clip_min 0"
    paper_hours: ClassVar[Mapping[str, float]] = {"stable-diffusion": 1.9, "stable-diffusion-xl": 4.0}  # section 4.2

    def record(self) -> dict[str, Any]:
        return {"loss": self.name, "advantage_clip_min": self.advantage_clip_min}

    def row_weights(self, advantages: torch.Tensor) -> torch.Tensor:
        return transform_advantages(advantages, self.advantage_clip_min)

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor | None = None) -> LossOutput:
        return LossOutput(craft_loss(prediction, batch.target, batch.weights, batch.timestep_weights))


@dataclass
class SFT(CRAFT):
    """Plain fine-tuning: CRAFT with every advantage set to 1."""

    name: ClassVar[str] = "sft"
    title: ClassVar[str] = "supervised fine-tuning"
    paper: ClassVar[str] = ""
    uses_advantages: ClassVar[bool] = False
