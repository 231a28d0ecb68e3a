# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""DSPO (Zhu et al., ICLR 2025): the winner's score is matched to the data's plus the gradient of the preference.

The released code optimises two different losses; this is the one of its SD1.5 script, derived in closed form. The SDXL
script's has no denoising term and is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Batch, LossOutput, Objective, check_range, error_changes, pair_margins, pair_metrics, per_row


def dspo_loss(
    prediction: torch.Tensor,
    reference: torch.Tensor,
    target: torch.Tensor,
    changes: torch.Tensor,
    beta: float,
    gate_beta: float,
    detach_gate: bool = True,
) -> torch.Tensor:
    """mean over P, C, H, W of ((p_w - target_w) - beta (1 - sigmoid(u)) (p_w - ref_w))^2, u = -gate_beta / 2 (d_w - d_l).

    All are of [winners, losers]: (2P, C, H, W), and (2P,) `changes` d = m_theta - m_ref. A beta of 0 is fine-tuning on
    the winners. The code has `gate_beta` = `beta` = 0.001, which leaves the gate at 1/2, and does not detach it;
    detached, losers only steer the weights.
    """
    gate = torch.sigmoid(0.5 * gate_beta * pair_margins(changes))  # 1 - sigmoid(u)
    gate = per_row(gate.detach() if detach_gate else gate, prediction)
    winners = prediction.chunk(2)[0]
    residual = (winners - target.chunk(2)[0]) - beta * gate * (winners - reference.chunk(2)[0])
    return residual.square().mean()


@dataclass
class DSPO(Objective):
    """DSPO; the defaults let the gate act, unlike the code's 0.001 in both places.

    Args:
        beta (`float`, *optional*, defaults to 0.5): weight of the preference's gradient; 0 is SFT on the winners.
        gate_beta (`float`, *optional*, defaults to 5000): inside the sigmoid.
        detach_gate (`bool`, *optional*, defaults to `True`): whether losers only steer the weights.
    """

    title: ClassVar[str] = "DSPO (Zhu et al., ICLR 2025)"
    beta: float = 0.5
    gate_beta: float = 5000.0
    detach_gate: bool = True
    name: ClassVar[str] = "dspo"
    unit: ClassVar[str] = "pair"
    uses_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1)
        check_range("gate_beta", self.gate_beta, 0)

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        scale = 1.0 if batch.error_scale is None else per_row(batch.error_scale.sqrt(), batch.target.float())
        prediction, reference, target = (scale * x.float() for x in (prediction, reference, batch.target))
        loss = dspo_loss(prediction, reference, target, changes, self.beta, self.gate_beta, self.detach_gate)
        return LossOutput(loss, pair_metrics(changes))
