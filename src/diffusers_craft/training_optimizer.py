# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The optimizer that the flags ask for."""

from argparse import Namespace
from collections.abc import Iterable

import torch


def create_optimizer(
    parameters: Iterable[torch.nn.Parameter], args: Namespace, learning_rate: float
) -> torch.optim.Optimizer:
    """Fused AdamW over the parameters that require a gradient.

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): of the UNet, on the training device.
        args (`argparse.Namespace`): the optimizer's flags.
        learning_rate (`float`): after `--scale_lr`.
    """
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
        fused=True,
    )
