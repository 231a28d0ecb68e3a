# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Heads of linear layers: the official ones have dropout and no activations, so at inference they are nothing else."""

from pathlib import Path

import torch
from torch import nn

from ..errors import UserError


def build_linear_head(reward: str, state: dict[str, torch.Tensor], path: Path) -> nn.Sequential:
    """A chain of linear layers with one output; its sizes are read from the tensors.

    Args:
        reward (`str`): name of the reward, for error texts.
        state (`dict`): `<prefix>.<number>.weight` and `.bias`; the numbers give the order.
        path (`Path`): the file they come from, for error texts.
    """
    weights = {name.removesuffix(".weight"): value for name, value in state.items() if name.endswith(".weight")}
    layers, width = nn.Sequential(), None
    for name, weight in sorted(weights.items(), key=lambda item: int(item[0].rsplit(".", 1)[-1])):
        if weight.ndim != 2 or f"{name}.bias" not in state or (width is not None and weight.shape[1] != width):
            raise UserError(f"--reward_checkpoint {reward}: expected a chain of linear layers in {path}, found {name}")
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight.float(), "bias": state[f"{name}.bias"].float()})
        layers.append(layer)
        width = weight.shape[0]
    if width != 1:
        raise UserError(f"--reward_checkpoint {reward}: expected a head with one output in {path}, found {width}")
    return layers
