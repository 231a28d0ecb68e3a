# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from . import base
from .base import Batch, LossOutput, Objective, error_changes, number, pair_metrics


def dpo_loss(changes: torch.Tensor, beta: float, factors: torch.Tensor | None = None) -> torch.Tensor:
    """mean_P softplus(f beta / 2 (d_w - d_l)) of (2P,) d = m_theta - m_ref; (P,) f is 1 by default.

    As in the authors' code, errors are means over C, H and W, with a factor 1/2; the paper's sum of squares times
    beta * T * omega is beta / (2 C H W) of it. The paper's good range of beta is 2000 to 5000.
    """
    logits = -0.5 * beta * base.pair_margins(changes)
    if factors is not None:
        logits = factors * logits
    return F.softplus(-logits).mean()


@dataclass
class DPO(Objective):
    """Diffusion-DPO (eq. 14): raise the winner's likelihood over the loser's, relative to a reference.

    Args:
        beta (`float`, *optional*, defaults to 5000): strength of the reference, see `dpo_loss`; the paper's is 2000 for
            SD1.5, its code's launcher takes 5000 for both models.
    """

    title: ClassVar[str] = "Diffusion-DPO"
    paper: ClassVar[str] = "2311.12908"
    beta: float = number(5000.0, 0, above=True)
    name: ClassVar[str] = "dpo"
    unit: ClassVar[str] = "pair"
    uses_reference: ClassVar[bool] = True

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        return LossOutput(dpo_loss(changes, self.beta), pair_metrics(changes))
