# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-DPO (arXiv 2311.12908, eq. 14): raise the winner's likelihood over the loser's, relative to a reference."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from .base import Batch, LossOutput, Objective, check_range, error_changes, pair_margins, pair_metrics


def dpo_loss(changes: torch.Tensor, beta: float, factors: torch.Tensor | None = None) -> torch.Tensor:
    """mean_P softplus(f * beta / 2 * (d_w - d_l)), which is -log sigmoid of the negative.

    The authors' code measures errors as means over C, H and W, with a factor 1/2; the paper's sum of squares times
    beta * T * omega is beta / (2 C H W) of it. The paper's good range of beta is 2000 to 5000.

    `changes` are (2P,) d = m_theta - m_ref of [winners, losers], `factors` (P,) f, by default 1. Without any change
    the loss is ln 2.
    """
    logits = -0.5 * beta * pair_margins(changes)
    if factors is not None:
        logits = factors * logits
    return F.softplus(-logits).mean()


@dataclass
class DPO(Objective):
    """Diffusion-DPO.

    Args:
        beta (`float`, *optional*, defaults to 5000): strength of the reference, see `dpo_loss`; the paper's is 2000 for
            SD1.5, its code's launcher takes 5000 for both models.
    """

    title: ClassVar[str] = "Diffusion-DPO"
    paper: ClassVar[str] = "2311.12908"
    beta: float = 5000.0
    name: ClassVar[str] = "dpo"
    unit: ClassVar[str] = "pair"
    uses_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, above=True)

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        return LossOutput(dpo_loss(changes, self.beta), pair_metrics(changes))
