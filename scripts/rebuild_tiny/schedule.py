# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The learning rate that all of the embedded pipelines' parts share."""

import torch


def learning_rate(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up over 2 % of the steps, constant, then linear to zero over the last 40 %."""
    warmup = max(1, steps // 50)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * min(1.0, (steps - step) / (0.4 * steps))
    )
