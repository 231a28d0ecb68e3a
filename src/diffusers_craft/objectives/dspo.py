# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""DSPO (Zhu et al., ICLR 2025): the gradient of the preference beside that of the data."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from . import base
from .base import Batch, LossOutput, Objective, error_changes, number, pair_metrics


def dspo_loss(
    prediction: torch.Tensor,
    reference: torch.Tensor,
    target: torch.Tensor,
    changes: torch.Tensor,
    beta: float,
    gate_beta: float,
    detach_gate: bool = True,
) -> torch.Tensor:
    """Mean of ((p_w - target_w) - beta (1 - sigmoid(u)) (p_w - ref_w))^2, u = -gate_beta / 2 (d_w - d_l).

    Tensors are (2P, C, H, W), changes (2P,). Of the released code's losses, this is the SD1.5 script's in closed form,
    with 0.001 for both betas, so a gate of 1/2, and no detaching; the SDXL script's has no denoising term.
    """
    gate = torch.sigmoid(0.5 * gate_beta * base.pair_margins(changes))  # 1 - sigmoid(u)
    gate = base.per_row(gate.detach() if detach_gate else gate, prediction)
    winners = prediction.chunk(2)[0]
    residual = (winners - target.chunk(2)[0]) - beta * gate * (winners - reference.chunk(2)[0])
    return residual.square().mean()


@dataclass
class DSPO(Objective):
    """DSPO: the winner's score is matched to the data's plus the gradient of the preference.

    The defaults let the gate act, unlike the code's 0.001 in both places.

    Args:
        beta (`float`, *optional*, defaults to 0.5): weight of the preference's gradient; 0 is SFT on the winners.
        gate_beta (`float`, *optional*, defaults to 5000): inside the sigmoid.
        detach_gate (`bool`, *optional*, defaults to `True`): whether losers only steer the weights.
    """

    title: ClassVar[str] = "DSPO (Zhu et al., ICLR 2025)"
    beta: float = number(0.5, 0, 1)
    gate_beta: float = number(5000.0, 0)
    detach_gate: bool = True
    name: ClassVar[str] = "dspo"
    unit: ClassVar[str] = "pair"
    uses_reference: ClassVar[bool] = True

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        scale = 1.0 if batch.error_scale is None else base.per_row(batch.error_scale.sqrt(), batch.target.float())
        prediction, reference, target = (scale * x.float() for x in (prediction, reference, batch.target))
        loss = dspo_loss(prediction, reference, target, changes, self.beta, self.gate_beta, self.detach_gate)
        return LossOutput(loss, pair_metrics(changes))
