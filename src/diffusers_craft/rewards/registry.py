# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Reward models by name. A new one is one file beside this and one line in `_FACTORIES`."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

    from .base import Reward

# Name -> factory, or "module:factory" so that a name costs no import until it is used.
_FACTORIES: "dict[str, str | Callable[..., Reward]]" = {
    "hps_v2.1": "diffusers_craft.rewards.hps:HPSReward",
    "pickscore": "diffusers_craft.rewards.pickscore:PickScoreReward",
    "aesthetic": "diffusers_craft.rewards.aesthetic:AestheticReward",
}


def reward_names() -> tuple[str, ...]:
    """Every name that `load_reward` takes."""
    return tuple(_FACTORIES)


def register_reward(name: str, factory: "Callable[..., Reward]") -> None:
    """Makes a reward model of your own available by name.

    Args:
        name (`str`): the name for `load_reward` and `--rewards`.
        factory (`Callable`): called with `checkpoint`, `device`, `dtype` and `batch_size` as keywords; returns an object
            with `name`, `source` (`dict`) and `score(prompts, images)` (see `rewards.base.Reward`).
    """
    _FACTORIES[name] = factory


def load_reward(
    name: str,
    checkpoint: str | None = None,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | None" = None,
    batch_size: int = 16,
) -> "Reward":
    """A reward model by name, with its official scores.

    Args:
        name (`str`): `hps_v2.1`, `pickscore`, `aesthetic`, or a registered name.
        checkpoint (`str`, *optional*): file, folder or Hub id; the official weights by default.
        device (`str` or `torch.device`, *optional*): defaults to a GPU if there is one.
        dtype (`torch.dtype`, *optional*): precision of the towers; float16 autocast on a GPU, float32 on a CPU.
        batch_size (`int`, defaults to 16): images per forward pass.

    Returns:
        `Reward`: `.score(prompts, images)` gives (B,) float32 raw scores.

    Raises:
        ValueError: if the name is unknown or the checkpoint cannot be found.
    """
    if name not in _FACTORIES:
        raise ValueError(f"--rewards: expected one of {', '.join(_FACTORIES)}, found {name!r}")
    factory = _FACTORIES[name]
    if isinstance(factory, str):
        module, attribute = factory.split(":")
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"reward {name}: needs the package {error.name}; install it with: pip install 'diffusers-craft[rewards]'"
            ) from None
    return factory(checkpoint=checkpoint, device=device, dtype=dtype, batch_size=batch_size)
