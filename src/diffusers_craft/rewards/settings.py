# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""How reward models are loaded and run: as settings, as flags of every script that scores, and the loading itself."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.script import parse_pairs
from ..errors import UserError
from ..tiny import embedded_rewards, reward_checkpoint
from .registry import check_reward_name, load_reward, register_spec


EMBEDDED = "tiny"  # as a checkpoint: the one that the package ships
PRECISIONS = {"auto": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
RESIDENCIES = ("sequential", "together")
MAX_WORKERS = 8


@dataclass(frozen=True)
class RewardSettings:
    """How reward models are loaded and run.

    Args:
        checkpoints (`Mapping[str, str]`, *optional*): reward name to a file, folder or Hub id instead of the official
            checkpoint; `"tiny"` is the one that the package ships.
        backends (`Mapping[str, str]`, *optional*): reward name to `"package"`, to use the authors' own package.
        batch_size (`int`, *optional*, defaults to 16): images per forward pass.
        precision (`str`, *optional*, defaults to `"auto"`): of the towers: `"fp16"` or `"bf16"` autocast, `"fp32"` (the
            reference), `"auto"` is fp16 on a GPU and fp32 on a CPU. Normalisation, dot products and heads are fp32.
        residency (`str`, *optional*, defaults to `"sequential"`): `"sequential"`, one reward in memory at a time, or
            `"together"`, all at once and every image decoded once.
        num_workers (`int`, *optional*): threads that decode images; by default none for rewards on a CPU, which they
            would compete with, and this rank's share of the CPU cores, at most 8, for rewards on a GPU.

    Raises:
        UserError: names the flag whose value cannot be.
    """

    checkpoints: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 16
    precision: str = "auto"
    residency: str = "sequential"
    num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--reward_batch_size: expected at least 1, found {self.batch_size}")
        for name, known in (("precision", PRECISIONS), ("residency", RESIDENCIES)):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"--reward_{name}: expected one of {', '.join(known)}, found {value!r}")
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"--dataloader_num_workers: expected at least 0, found {self.num_workers}")

    @classmethod
    def from_args(cls, args: argparse.Namespace, names: Sequence[str]) -> "RewardSettings":
        """What the flags of `add_reward_arguments` say about the named rewards."""
        return cls(
            checkpoints=parse_pairs("--reward_checkpoint", args.reward_checkpoint, names),
            backends=parse_pairs("--reward_backend", args.reward_backend, names),
            batch_size=args.reward_batch_size,
            precision=args.reward_precision,
            residency=args.reward_residency,
            num_workers=args.dataloader_num_workers,
        )

    def workers(self, device: torch.device | str | None) -> int:
        """How many threads shall decode images for rewards on a device."""
        if self.num_workers is not None:
            return self.num_workers
        on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type != "cpu"
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return min(MAX_WORKERS, max(1, (os.cpu_count() or 1) // ranks_here)) if on_gpu else 0


def add_reward_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, rewards: Sequence[str], embedded: str = ""
) -> None:
    """Adds `--rewards`, with the default `rewards`, and a flag for every field of `RewardSettings`.

    `embedded` is a further sentence on `--reward_checkpoint`.
    """
    text = "Reward models by name, or MODULE:CLASS for one of your own; =WEIGHT counts in a composite reward."
    parser.add_argument("--rewards", nargs="+", default=list(rewards), metavar="NAME=WEIGHT", help=text)
    text = "Checkpoint of a reward model (file, folder, Hub id, or tiny for the embedded one); may be given several times."
    text = f"{text} {embedded}".rstrip()
    parser.add_argument("--reward_checkpoint", action="append", default=[], metavar="NAME=PATH", help=text)
    text = "Score hps_v2.1 or image_reward with its authors' own package, where that is installed and works."
    parser.add_argument("--reward_backend", action="append", default=[], metavar="NAME=package", help=text)
    defaults, text = RewardSettings(), "Images scored together."
    parser.add_argument("--reward_batch_size", type=int, default=defaults.batch_size, help=text)
    text = "Of the towers; auto: fp16 on a GPU, fp32 on a CPU. fp32 is the reference."
    parser.add_argument("--reward_precision", choices=list(PRECISIONS), default=defaults.precision, help=text)
    text = "One reward model in memory at a time, or all together, which decodes every image once."
    parser.add_argument("--reward_residency", choices=list(RESIDENCIES), default=defaults.residency, help=text)
    text = "Threads that decode images; default: 0 for rewards on a CPU, else this rank's CPU cores, at most 8."
    parser.add_argument("--dataloader_num_workers", type=int, default=defaults.num_workers, help=text)


def parse_reward_weights(values: Sequence[str]) -> dict[str, float]:
    """The weights by name that `--rewards` gives, in the given order.

    Each value is `name=weight`; a bare `name` has weight 1. `module:Class` in place of a name is imported and registered
    under the class's `name`, or `Class`.
    """
    weights: dict[str, float] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if ":" in name:
            name = register_spec(name)
        check_reward_name(name)
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


def load_rewards(
    names: Sequence[str],
    settings: RewardSettings,
    device: torch.device | str | None = None,
    base: str = "",
    models: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The reward models by name. Finds all checkpoints now; those of this package read their weights on first use.

    Rewards on one CLIP (`aesthetic`, `clip_score`) share its image half. `base` is the model whose images are scored: an
    embedded one brings embedded rewards. `models` are rewards that exist already.
    """
    rewards = dict(models or {})
    checkpoints = {n: reward_checkpoint(n) if path == EMBEDDED else path for n, path in settings.checkpoints.items()}
    if missing := [name for name, path in checkpoints.items() if path is None]:
        raise UserError(
            f"--reward_checkpoint: expected a reward that the package ships, found {missing[0]}={EMBEDDED}"
        )
    open_names = [name for name in names if not any(name in m for m in (rewards, checkpoints, settings.backends))]
    checkpoints |= embedded_rewards(base, open_names)
    dtype = PRECISIONS[settings.precision]
    for name in names:
        if name not in rewards:
            backend = settings.backends.get(name)
            rewards[name] = load_reward(name, checkpoints.get(name), device, dtype, settings.batch_size, backend)
    rewards = {name: rewards[name] for name in names}
    if sum(hasattr(reward, "tower") for reward in rewards.values()) > 1:
        from .aesthetic import share_image_pass

        share_image_pass(rewards.values())
    return rewards


def reward_source(reward: Any) -> dict[str, Any]:
    """What determines a reward's scores, for the record: its own `source`, else the class's place."""
    kind = type(reward)
    return getattr(reward, "source", None) or {"checkpoint": f"{kind.__module__}:{kind.__qualname__}"}
