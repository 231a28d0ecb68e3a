# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Diffusion-KTO (Li et al. 2024, arXiv 2404.04465): labelled images instead of pairs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..errors import UserError
from .base import Batch, Context, LossOutput, Objective, choice, error_changes, number


UTILITIES = {
    "kahneman_tversky": torch.sigmoid,
    "loss_averse": F.logsigmoid,
    "risk_seeking": lambda value: -F.logsigmoid(-value),
}


def kto_loss(
    changes: torch.Tensor,
    labels: torch.Tensor,
    beta: float,
    baseline: torch.Tensor | None = None,
    utility: str = "kahneman_tversky",
    liked_weight: float = 1.0,
    disliked_weight: float = 1.0,
) -> torch.Tensor:
    """mean_B lambda_y (1 - U(y beta (g - z))), g = -changes, y the label's sign, z = max(0, mean g) a constant.

    `baseline` is the mean of g, by default that of these rows. There is no 1/2 beside beta: 5000 is 10000 in DPO's.
    """
    gains = -changes
    baseline = (gains.mean() if baseline is None else baseline).detach().clamp(min=0)
    labels = labels.sign().to(gains)
    weights = torch.where(labels > 0, liked_weight, disliked_weight)
    return (weights * (1 - UTILITIES[utility](labels * beta * (gains - baseline)))).mean()


@dataclass
class KTO(Objective):
    """Diffusion-KTO, through a utility that saturates; the sign of a row's `weights` is its label.

    The mean gain z is taken over the micro-batches of all processes that run together, so results depend on how a batch
    is cut (with batches of 2, as in the paper, it is mostly noise).

    Args:
        beta (`float`, *optional*, defaults to 5000): strength of the reference; counts twice as much as DPO's.
        utility (`str`, *optional*, defaults to `"kahneman_tversky"`): or `loss_averse`, `risk_seeking`.
        liked_weight (`float`, *optional*, defaults to 1): lambda of images labelled +1.
        disliked_weight (`float`, *optional*, defaults to 1): lambda of images labelled -1.
    """

    title: ClassVar[str] = "Diffusion-KTO"
    paper: ClassVar[str] = "2404.04465"
    beta: float = number(5000.0, 0, above=True)
    utility: str = choice("kahneman_tversky", list(UTILITIES))
    liked_weight: float = number(1.0, 0)
    disliked_weight: float = number(1.0, 0)
    name: ClassVar[str] = "kto"
    unit: ClassVar[str] = "label"
    uses_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.liked_weight and not self.disliked_weight:
            raise UserError("--liked_weight, --disliked_weight: expected one above 0, found 0 for both")

    def prepare(self, batch: Batch, context: Context) -> Batch:
        return batch._replace(extras={"mean": context.mean})

    def loss(self, batch: Batch, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        mean_gain = -changes.detach().mean()
        baseline = batch.extras["mean"](mean_gain) if "mean" in batch.extras else mean_gain
        options = (self.beta, baseline, self.utility, self.liked_weight, self.disliked_weight)
        return LossOutput(kto_loss(changes, batch.weights, *options), {"mean_gain": mean_gain})
