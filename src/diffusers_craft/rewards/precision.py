# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Precision of the towers: autocast or true float32, and weights that rest in half precision.

Half-precision checkpoints stay as small in memory as on disk, and still compute in float32: the weights of the
transformer blocks and the token embedding rest in the precision of the checkpoint. Where the towers run in float32, a
block is cast while it runs: exactly the numbers of a model cast as a whole, at half its memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def tower_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`; for float32 none, and no TF32 either, in which a GPU convolves unless told otherwise."""
    if dtype != torch.float32:
        with torch.autocast(device.type, dtype=dtype):
            yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # PyTorch 2.9 and newer have `conv`; the old names must not be mixed with the new ones.
    new = hasattr(cudnn, "conv")
    owners = (cudnn.conv if new else cudnn, matmul)
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, exact)
        yield
    finally:
        for owner, value in zip(owners, before):
            setattr(owner, name, value)


def _cast_while_running(block: nn.Module) -> None:
    forward: Callable = block.forward

    def forward_in_float32(*args, **kwargs):
        resting = [(module._parameters, dict(module._parameters)) for module in block.modules()]
        try:
            for parameters, weights in resting:
                parameters |= {name: weight.float() for name, weight in weights.items() if weight is not None}
            return forward(*args, **kwargs)
        finally:
            for parameters, weights in resting:
                parameters |= weights

    block.forward = forward_in_float32


def rest_in_checkpoint_precision(
    model: nn.Module, blocks: list[nn.Module], embedding: nn.Embedding | None, autocast: bool
) -> None:
    """Casts what is small to float32, and arranges that the transformer `blocks` compute in float32 without a second copy.

    Rows of the token `embedding` are cast by the float32 positions that they are added to. Under `autocast` the towers
    cast by themselves what they need in float32.
    """
    resting = {id(weight) for module in (*blocks, embedding) if module for weight in module.parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in resting and tensor.is_floating_point():
            tensor.data = tensor.data.float()
    if not autocast and any(weight.dtype != torch.float32 for block in blocks for weight in block.parameters()):
        for block in blocks:
            _cast_while_running(block)
