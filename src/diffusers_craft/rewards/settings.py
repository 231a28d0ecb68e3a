# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Reward models by name, those of this package, of others and the user's own: settings, flags and loading."""

import argparse
import importlib.metadata
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from .. import tiny
from ..core.flags import add_flag, flags_of, option
from ..core.load import import_object
from ..core.records import CANDIDATE_SCHEMA
from ..core.script import parse_pairs
from ..errors import UserError
from .base import Reward


logger = logging.getLogger(__name__)

# Name -> factory, or "module:factory" so that a name costs no import until it is used. A new one is a line here.
_FACTORIES: dict[str, str | Callable[..., Reward]] = {
    "hps_v2.1": "diffusers_craft.rewards.hps:HPSReward",
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
EMBEDDED = "tiny"  # as a checkpoint: the one that the package ships
PRECISIONS = {"auto": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def reward_factories() -> dict[str, Any]:
    """What `load_reward` knows by name: registered rewards, then the entry points of installed packages."""
    points = importlib.metadata.entry_points(group="diffusers_craft.rewards")
    offered = {p.name: p.value for p in points if _SAFE_NAME.fullmatch(p.name) and p.name not in _RESERVED}
    return _FACTORIES | {name: place for name, place in offered.items() if name not in _FACTORIES}


def _find_factory(name: str) -> Any:
    if name in _FACTORIES:  # without a look at what else is installed
        return _FACTORIES[name]
    if name not in (factories := reward_factories()):
        raise UserError(f"--rewards: expected one of {', '.join(factories)} or MODULE:CLASS, found {name!r}")
    return factories[name]


def register_reward(name: str, factory: str | Callable[..., Any]) -> None:
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


def _register_spec(spec: str) -> str:
    """Registers a reward given as `module:Class` under the class's own `name`, else `Class`, and returns that."""
    own = getattr(import_object(spec, flag="--rewards"), "name", None)
    name = own if isinstance(own, str) else spec.partition(":")[2].rpartition(".")[2]
    if reward_factories().get(name, spec) != spec:
        raise UserError(f"--rewards: expected {spec} to have a name of its own, found that of the reward {name!r}")
    register_reward(name, spec)
    return name


def load_reward(
    name: str,
    checkpoint: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 16,
    backend: str | None = None,
) -> Reward:
    """A reward model by name, with its official scores.

    Args:
        name (`str`): `hps_v2.1`, `pickscore`, `aesthetic`, `image_reward`, `mps`, `clip_score`, a registered name, the
            name of an entry point, or `module:Class`.
        checkpoint (`str`, *optional*): file, folder or Hub id; the official weights by default.
        device, dtype, batch_size: see `Reward`.
        backend (`str`, *optional*): `"package"` takes `hps_v2.1` from an installed `hpsv2` and `image_reward` from an
            installed `image-reward`; by default they run on open_clip and transformers.

    Returns:
        `Reward`: `.score(prompts, images)` gives (B,) float32 raw scores.

    Raises:
        UserError: if the name or backend is unknown, a package is missing or the checkpoint cannot be found.
    """
    if ":" in name:
        name = _register_spec(name)
    if backend is None:
        factory = _find_factory(name)
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
        extra = "'diffusers-craft[rewards]'" if package in ("open_clip", "torchvision") else package
        raise UserError(f"reward {name}: needs the package {package}; install it with: pip install {extra}") from None
    if not inspect.isclass(factory) and hasattr(factory, "score"):
        return factory  # a reward already
    if not callable(factory):
        raise UserError(f"reward {name}: expected a class or function, found {type(factory).__name__}")
    options = {"checkpoint": checkpoint, "device": device, "dtype": dtype, "batch_size": batch_size}
    parameters = inspect.signature(factory).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if checkpoint is not None and "checkpoint" not in accepted:
            raise UserError(f"--reward_checkpoint: expected none for {name}, which takes no checkpoint")
        options = {key: value for key, value in options.items() if key in accepted}
    reward = factory(**options)
    if not callable(getattr(reward, "score", None)):
        found = type(reward).__name__
        raise UserError(f"reward {name}: expected an object with score(prompts, images), found {found}")
    return reward


def any_reads_prompts(names: Sequence[str]) -> bool:
    """Whether one of the rewards looks at prompts; known of a class before it finds its checkpoint."""
    factories = [_find_factory(name) for name in names]
    try:
        classes = [import_object(one) if isinstance(one, str) else one for one in factories]
    except (ImportError, AttributeError, ValueError):
        return True  # loading it will say what is wrong
    return any(getattr(one, "reads_prompts", True) for one in classes)


def parse_reward_weights(values: Sequence[str]) -> dict[str, float]:
    """The weights by name of `name=weight` texts, in their order, 1 for a bare name; registers every `module:Class`."""
    weights: dict[str, float] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if ":" in name:
            name = _register_spec(name)
        _find_factory(name)
        if name in weights:
            raise UserError(f"--rewards: expected each reward once, found {name} twice")
        try:
            weight = float(text) if separator else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"--rewards: expected {name}=NUMBER, found {value!r}")
        if weight < 0:
            raise UserError(f"--rewards: expected weights of at least 0, found {value!r}")
        weights[name] = weight
    if not weights:
        raise UserError("--rewards: expected at least one reward such as pickscore=0.4, found none")
    if not any(weights.values()):
        raise UserError(f"--rewards: expected a weight above 0, found {' '.join(values)}")
    return weights


@dataclass(frozen=True)
class RewardSettings:
    """How reward models are loaded and run.

    `precision` is `"auto"`, `"fp16"` or `"bf16"` (autocast of the towers), or `"fp32"`; normalisation, dot products and
    heads are fp32 always. `residency` is `"sequential"` or `"together"`.

    Args:
        checkpoints (`Mapping[str, str]`, *optional*): reward name to a file, folder or Hub id instead of the official
            checkpoint; `"tiny"` is the one that the package ships.
        backends (`Mapping[str, str]`, *optional*): reward name to `"package"`, to use the authors' own package.
        batch_size (`int`, *optional*, defaults to 16): Images scored together.
        precision (`str`, *optional*, defaults to `"auto"`): Of the towers; auto: fp16 on a GPU, fp32 on a CPU. fp32 is
            the reference.
        residency (`str`, *optional*, defaults to `"sequential"`): One reward model in memory at a time, or all together,
            which decodes every image once.
        num_workers (`int`, *optional*): Threads that decode images; default: 0 for rewards on a CPU, else this rank's CPU
            cores, at most 8.

    Raises:
        UserError: names the flag whose value cannot be.
    """

    checkpoints: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 16
    precision: str = option("auto", choices=tuple(PRECISIONS))
    residency: str = option("sequential", choices=("sequential", "together"))
    num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--reward_batch_size: expected at least 1, found {self.batch_size}")
        for one in fields(self):
            known, value = one.metadata.get("choices"), getattr(self, one.name)
            if known and value not in known:
                raise UserError(f"--reward_{one.name}: expected one of {', '.join(known)}, found {value!r}")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"--dataloader_num_workers: expected at least 0, found {self.num_workers}")

    @classmethod
    def from_args(cls, args: argparse.Namespace, names: Sequence[str]) -> "RewardSettings":
        """What the flags of `add_reward_arguments` say about the named rewards."""
        checkpoints = parse_pairs("--reward_checkpoint", args.reward_checkpoint, names)
        backends = parse_pairs("--reward_backend", args.reward_backend, names)
        own = {name: getattr(args, f"reward_{name}") for name in ("batch_size", "precision", "residency")}
        return cls(checkpoints=checkpoints, backends=backends, num_workers=args.dataloader_num_workers, **own)

    def workers(self, device: torch.device | str | None) -> int:
        """How many threads shall decode images for rewards on a device."""
        if self.num_workers is not None:
            return self.num_workers
        on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type != "cpu"
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return min(8, max(1, (os.cpu_count() or 1) // ranks_here)) if on_gpu else 0


def add_reward_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, rewards: Sequence[str], embedded: str = ""
) -> None:
    """`--rewards` and a flag for every field of `RewardSettings`; `embedded` is more help of `--reward_checkpoint`."""
    text = "Reward models by name, or MODULE:CLASS for one of your own; =WEIGHT counts in a composite reward."
    parser.add_argument("--rewards", nargs="+", default=list(rewards), metavar="NAME=WEIGHT", help=text)
    text = "Checkpoints of reward models (file, folder, Hub id, or tiny for the embedded one)."
    text = f"{text} {embedded}".rstrip()
    parser.add_argument("--reward_checkpoint", action="extend", nargs="+", default=[], metavar="NAME=PATH", help=text)
    text = "Score hps_v2.1 or image_reward with its authors' own package, where that is installed and works."
    parser.add_argument("--reward_backend", action="extend", nargs="+", default=[], metavar="NAME=package", help=text)
    for flag in flags_of(RewardSettings):
        name = "dataloader_num_workers" if flag.name == "num_workers" else f"reward_{flag.name}"
        add_flag(parser, flag._replace(name=name), {"default": flag.default})


def load_rewards(
    names: Sequence[str],
    settings: RewardSettings,
    device: torch.device | str | None = None,
    base: str = "",
    models: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The reward models by name. Finds all checkpoints now; those of this package read their weights on first use.

    `base` is the model whose images are scored: an embedded one brings embedded rewards. `models` are rewards made already.
    """
    rewards, checkpoints = dict(models or {}), dict(settings.checkpoints)
    for name in [name for name, path in checkpoints.items() if path == EMBEDDED]:
        checkpoints[name] = tiny.reward_checkpoint(name)
        if checkpoints[name] is None:
            raise UserError(f"--reward_checkpoint: expected a reward that the package ships, found {name}={EMBEDDED}")
    if tiny.is_tiny(base):
        taken = {*rewards, *checkpoints, *settings.backends}
        found = {name: path for name in names if name not in taken and (path := tiny.reward_checkpoint(name))}
        if found:
            logger.info("The base is a tiny model: scoring with the embedded checkpoints of %s", ", ".join(found))
        checkpoints |= found
    options = device, PRECISIONS[settings.precision], settings.batch_size
    for name in names:
        if name not in rewards:
            rewards[name] = load_reward(name, checkpoints.get(name), *options, settings.backends.get(name))
    rewards = {name: rewards[name] for name in names}
    if sum(hasattr(reward, "tower") for reward in rewards.values()) > 1:  # both on one CLIP: they share its image half
        from .aesthetic import share_image_pass

        share_image_pass(rewards.values())
    return rewards


def reward_source(reward: Any) -> dict[str, Any]:
    """What determines a reward's scores, for the record: its own `source`, else the class's place."""
    kind = type(reward)
    return getattr(reward, "source", None) or {"checkpoint": f"{kind.__module__}:{kind.__qualname__}"}
