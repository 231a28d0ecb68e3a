# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Half-precision checkpoints stay as small in memory as on disk, and still compute in float32.

The weights of the transformer blocks and the token embedding rest in the precision of the checkpoint. Where the towers
run in float32, a block is cast while it runs: exactly the numbers of a model cast as a whole, at half its memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def _in_float32(block: nn.Module) -> Iterator[None]:
    resting: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in block.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_floating_point() and weight.dtype != torch.float32:
                resting.append((module, name, weight))
    try:
        for module, name, weight in resting:
            module._parameters[name] = weight.float()
        yield
    finally:
        for module, name, weight in resting:
            module._parameters[name] = weight


def fill_model(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Gives a model that was built on the meta device the tensors of `state` themselves, without a copy.

    Raises:
        RuntimeError: if names or shapes differ.
    """
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                if name != "position_ids":  # the only buffer that transformers' models do not save
                    raise RuntimeError(f"no {name}")
                module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape)


def _cast_while_running(block: nn.Module) -> None:
    forward: Callable = block.forward

    def forward_in_float32(*args, **kwargs):
        with _in_float32(block):
            return forward(*args, **kwargs)

    block.forward = forward_in_float32


def rest_in_checkpoint_precision(
    model: nn.Module, blocks: list[nn.Module], embedding: nn.Embedding | None, autocast: bool
) -> None:
    """Casts what is small to float32, and arranges that `blocks` compute in float32 without a second copy.

    Args:
        model (`nn.Module`): its parameters and buffers have the precision of the checkpoint.
        blocks (`list[nn.Module]`): the transformer blocks, which hold nearly all weights.
        embedding (`nn.Embedding`, *optional*): of the tokens; its rows are cast by the float32 positions that they are added to.
        autocast (`bool`): the towers run under autocast, which casts by itself what it needs in float32.
    """
    resting = {id(weight) for module in (*blocks, embedding) if module for weight in module.parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in resting and tensor.is_floating_point():
            tensor.data = tensor.data.float()
    if not autocast and any(weight.dtype != torch.float32 for block in blocks for weight in block.parameters()):
        for block in blocks:
            _cast_while_running(block)
