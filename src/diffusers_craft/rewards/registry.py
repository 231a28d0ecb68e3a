# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Reward models by name: those of this package, of other packages (entry points), and the user's own.

A new one is one file beside this and one line in `_FACTORIES`. Users have three ways, none of which edits this file:
`register_reward(name, factory)`; the entry-point group `diffusers_craft.rewards` of a package; `module:Class` in place
of a name. A reward is any object with `score(prompts, images) -> (B,) float32`, a subclass of `Reward` for example.
"""

import importlib.metadata
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.load import import_object
from ..core.records import CANDIDATE_SCHEMA
from ..errors import UserError


if TYPE_CHECKING:
    import torch

    from .base import Reward

# Name -> factory, or "module:factory" so that a name costs no import until it is used.
_FACTORIES: "dict[str, str | Callable[..., Reward]]" = {
    "hps_v2.1": "diffusers_craft.rewards.clip_score:HPSReward",
    "pickscore": "diffusers_craft.rewards.pickscore:PickScoreReward",
    "aesthetic": "diffusers_craft.rewards.aesthetic:AestheticReward",
    "image_reward": "diffusers_craft.rewards.image_reward:ImageRewardReward",
    "mps": "diffusers_craft.rewards.mps:MPSReward",
    "clip_score": "diffusers_craft.rewards.clip_score:ClipScoreReward",
    "geneval": "diffusers_craft.rewards.benchmarks.geneval:GenEvalReward",
    "t2i_compbench": "diffusers_craft.rewards.benchmarks.compbench:CompBenchReward",
    "mllm": "diffusers_craft.rewards.mllm:MLLMReward",
}
# The same scores from the packages of their authors.
_PACKAGE_FACTORIES = {
    "hps_v2.1": "diffusers_craft.rewards.packages:PackageHPSReward",
    "image_reward": "diffusers_craft.rewards.packages:PackageImageReward",
}
_SAFE_NAME = re.compile(r"[\w.-]+")  # names of folders, columns and NAME=VALUE flags
# Other columns of the tables in which a reward's scores are a column.
_RESERVED = {*CANDIDATE_SCHEMA.names, "latent_vae", "reward", "advantage", "kept", "selected"}
_EXTRA_PACKAGES = ("open_clip", "torchvision")  # what the extra `rewards` installs


def reward_names() -> tuple[str, ...]:
    """Every name that `load_reward` takes: registered ones, then those of installed packages' entry points."""
    return tuple(dict.fromkeys((*_FACTORIES, *_entry_points())))


def check_reward_name(name: str) -> None:
    """Refuses a name that `load_reward` does not take, and names those it takes."""
    if name not in _FACTORIES and name not in (names := reward_names()):
        raise UserError(f"--rewards: expected one of {', '.join(names)} or MODULE:CLASS, found {name!r}")


def register_reward(name: str, factory: "str | Callable[..., Reward | Any]") -> None:
    """Makes a reward model of your own available by name.

    Args:
        name (`str`): the name for `load_reward` and `--rewards`; letters, digits, `.`, `_` and `-`.
        factory (`Callable` or `str`): a class or function that returns an object with
            `score(prompts, images) -> (B,) float32`, or where to import it from, `"module:Class"`. It is called with
            those of the keywords `checkpoint`, `device`, `dtype` and `batch_size` that its signature has. If the object
            has a `source` (`dict`), it says which model and version it is; `release()`, if there, frees its memory.

    Raises:
        UserError: if the name cannot be the name of a folder and of a column.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise UserError(f"register_reward: expected a name of letters, digits, '.', '_' and '-', found {name!r}")
    if name in _RESERVED:
        raise UserError(f"register_reward: expected another name, found {name!r}, a column of the dataset")
    _FACTORIES[name] = factory


def register_spec(spec: str) -> str:
    """Registers a reward given as `module:Class` and returns the name of its scores: the class's own `name`, else `Class`."""
    factory = import_object(spec, flag="--rewards")
    own = getattr(factory, "name", None)
    name = own if isinstance(own, str) else spec.partition(":")[2].rpartition(".")[2]
    taken = _FACTORIES.get(name) or _entry_points().get(name)
    if taken is not None and taken != spec:
        raise UserError(f"--rewards: expected {spec} to have a name of its own, found that of the reward {name!r}")
    register_reward(name, spec)
    return name


def load_reward(
    name: str,
    checkpoint: str | None = None,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | None" = None,
    batch_size: int = 16,
    backend: str | None = None,
) -> "Reward":
    """A reward model by name, with its official scores.

    Args:
        name (`str`): `hps_v2.1`, `pickscore`, `aesthetic`, `image_reward`, `mps`, `clip_score`, a registered name, the
            name of an entry point, or `module:Class`.
        checkpoint (`str`, *optional*): file, folder or Hub id; the official weights by default.
        device (`str` or `torch.device`, *optional*): defaults to a GPU if there is one.
        dtype (`torch.dtype`, *optional*): precision of the towers; float16 autocast on a GPU, float32 on a CPU.
        batch_size (`int`, defaults to 16): images per forward pass.
        backend (`str`, *optional*): `"package"` takes `hps_v2.1` from an installed `hpsv2` and `image_reward` from an
            installed `image-reward`; by default they run on open_clip and transformers.

    Returns:
        `Reward`: `.score(prompts, images)` gives (B,) float32 raw scores.

    Raises:
        UserError: if the name or backend is unknown, a package is missing or the checkpoint cannot be found.
    """
    if ":" in name:
        name = register_spec(name)
    if backend is None:
        check_reward_name(name)
        factory = _FACTORIES[name] if name in _FACTORIES else _entry_points()[name]
    elif backend == "package" and name in _PACKAGE_FACTORIES:
        factory = _PACKAGE_FACTORIES[name]
    else:
        known = ", ".join(f"{known}=package" for known in _PACKAGE_FACTORIES)
        raise UserError(f"--reward_backend: expected one of {known}, found {name}={backend}")
    try:
        factory = import_object(factory) if isinstance(factory, str) else factory
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == __name__.split(".")[0]:  # a wrong entry above
            raise
        extra = "'diffusers-craft[rewards]'" if package in _EXTRA_PACKAGES else package
        raise UserError(f"reward {name}: needs the package {package}; install it with: pip install {extra}") from None
    return _make(name, factory, checkpoint=checkpoint, device=device, dtype=dtype, batch_size=batch_size)


def _entry_points() -> dict[str, str]:
    """Name to "module:Class" of the rewards that installed packages offer."""
    points = importlib.metadata.entry_points(group="diffusers_craft.rewards")
    return {p.name: p.value for p in points if _SAFE_NAME.fullmatch(p.name) and p.name not in _RESERVED}


def _make(name: str, factory: Any, **options: Any) -> Any:
    """The reward that a factory makes from the options which its signature has; an object with `score` as it is."""
    if not inspect.isclass(factory) and hasattr(factory, "score"):
        return factory
    if not callable(factory):
        raise UserError(f"reward {name}: expected a class or function, found {type(factory).__name__}")
    parameters = inspect.signature(factory).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if options["checkpoint"] is not None and "checkpoint" not in accepted:
            raise UserError(f"--reward_checkpoint: expected none for {name}, which takes no checkpoint")
        options = {key: value for key, value in options.items() if key in accepted}
    reward = factory(**options)
    if not callable(getattr(reward, "score", None)):
        raise UserError(
            f"reward {name}: expected an object with score(prompts, images), found {type(reward).__name__}"
        )
    return reward
