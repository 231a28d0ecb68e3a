# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""SmPO-Diffusion (arXiv 2506.02698): preferences smoothed by how far the scores are apart, on inverted latents."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Batch, LossOutput, choice, error_changes, number, pair_metrics
from .chains import RENOISE
from .dpo import dpo_loss
from .inpo import InPO


def smoothing_factors(
    winner_scores: torch.Tensor, loser_scores: torch.Tensor, score_range: float, gamma: float = 10.0
) -> torch.Tensor:
    """(P,) f = 2 alpha - gamma = gamma tanh((r'_w - r'_l) / 2), r' being rewards over the dataset's range of them.

    With P = sigmoid(r'_w - r'_l) = alpha / gamma it is gamma (2 P - 1). Hard labels are f = 1.
    """
    return gamma * torch.tanh((winner_scores - loser_scores) / (2 * score_range))


def smpo_loss(changes: torch.Tensor, factors: torch.Tensor, beta: float) -> torch.Tensor:
    """`dpo_loss` with (P,) `smoothing_factors`; equal scores (f = 0) give the constant ln 2 without a gradient."""
    return dpo_loss(changes, beta, factors)


@dataclass
class SmPO(InPO):
    """SmPO-Diffusion: the closer two images score, the less their order counts; InPO with ReNoise otherwise.

    Each pair's factor comes as the size of its rows' `weights` (+f for winners, -f for losers).

    Args:
        inversion_steps (`int`, *optional*, defaults to 9): grid points; 0 takes forward noise instead.
        renoise (`str`, *optional*, defaults to `"final"`): `none`, `final` (the paper) or `every` (the code).
        gamma (`float`, *optional*, defaults to 10): largest factor, see `smoothing_factors`.
    """

    title: ClassVar[str] = "SmPO-Diffusion"
    paper: ClassVar[str] = "2506.02698"
    inversion_steps: int = number(9, 0)
    renoise: str = choice("final", RENOISE)
    gamma: float = number(10.0, 0, above=True)
    name: ClassVar[str] = "SmPO"
    uses_scores: ClassVar[bool] = True

    def pair_weights(self, scores: torch.Tensor, score_range: float) -> torch.Tensor:
        return smoothing_factors(*scores.unbind(1), score_range, self.gamma)

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        return LossOutput(smpo_loss(changes, batch.weights.chunk(2)[0], self.beta), pair_metrics(changes))
