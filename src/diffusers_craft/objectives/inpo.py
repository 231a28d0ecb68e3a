# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""InPO (arXiv 2503.18454): DPO on latents from DDIM inversion, which is SmPO without smoothing and ReNoise.

The released code also jitters every inversion step ("optional") and mixes times as SmPO's does; neither is done here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import LossOutput, Noised, error_changes, pair_metrics
from .dpo import dpo_loss
from .smpo import SmPO


@dataclass
class InPO(SmPO):
    """InPO; arguments of `SmPO`. Factors that the data may carry do not count."""

    inversion_steps: int = 10
    renoise: str = "none"
    uses_scores: ClassVar[bool] = False

    def loss(self, batch: Noised, prediction: torch.Tensor, reference: torch.Tensor) -> LossOutput:
        changes = error_changes(batch, prediction, reference)
        return LossOutput(dpo_loss(changes, self.beta), pair_metrics(changes))
