# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""MaPO (Hong et al. 2024, arXiv 2406.06424): winners over losers by a margin, without a reference model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from . import base
from .base import Batch, LossOutput, Objective, choice, number


def bounded_likelihood(errors: torch.Tensor) -> torch.Tensor:
    """phi(u) = u / (exp(u) - 1) in (0, 1], falling, for (B,) errors u >= 0; phi(0) = 1, phi'(0) = -1/2."""
    positive = errors.clamp(min=1e-6)
    return torch.where(errors > 1e-6, positive / torch.expm1(positive), 1 - errors / 2)


def mapo_loss(errors: torch.Tensor, beta: float = 8.0, form: str = "paper", scale: float = 0.5) -> torch.Tensor:
    """mean m_w + a * mean softplus(-margin) of (2P,) errors m; a beta of 0 is fine-tuning on the winners.

    `paper` (AAAI version): a = 1 / beta, margin = phi(m_w)^beta - phi(m_l)^beta. `code`: a = beta, margin =
    1000 (phi(s m_w) - phi(s m_l)), s being the scale, which unlearns losers far more strongly.
    """
    winners, losers = errors.chunk(2)
    if beta == 0:
        return winners.mean()
    if form == "code":
        margin = 1000.0 * (bounded_likelihood(scale * winners) - bounded_likelihood(scale * losers))  # T = 1000
        return winners.mean() + beta * F.softplus(-margin).mean()
    margin = bounded_likelihood(winners) ** beta - bounded_likelihood(losers) ** beta
    return winners.mean() + F.softplus(-margin).mean() / beta


@dataclass
class MaPO(Objective):
    """MaPO: winners over losers by a margin of bounded likelihoods, without a reference model.

    Args:
        beta (`float`, *optional*, defaults to 8): of the margin, see `mapo_loss`; for the code's form 0.1 is its own.
        form (`str`, *optional*, defaults to `"paper"`): `paper` or `code`, see `mapo_loss`.
        scale (`float`, *optional*, defaults to 0.5): of errors in the code's margin.
    """

    title: ClassVar[str] = "MaPO"
    paper: ClassVar[str] = "2406.06424"
    beta: float = number(8.0, 0)
    form: str = choice("paper", ("paper", "code"))
    scale: float = number(0.5, 0, above=True)
    name: ClassVar[str] = "mapo"
    unit: ClassVar[str] = "pair"

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor | None = None) -> LossOutput:
        errors = base.noise_errors(batch, prediction)
        loss = mapo_loss(errors, self.beta, self.form, self.scale)
        return LossOutput(loss, {"accuracy": base.order_accuracy(*errors.detach().chunk(2))})
