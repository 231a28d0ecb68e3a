# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The embedded default: a miniature text-to-image world with models that are small enough to ship.

`tiny-sd15` and `tiny-sdxl` are names that every command takes in place of a checkpoint; see `world.py` for what they draw
and `scorer.py` for the judge that reads their pictures.
"""

import logging
from collections.abc import Iterable
from pathlib import Path


logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("tiny-sd15", "tiny-sdxl")
PROMPTS = ("tiny-train", "tiny-heldout")


def is_tiny(name: str) -> bool:
    """Whether `name` is one of the embedded models, by name or by the path of its folder."""
    return str(name) in MODELS or Path(name).resolve() in {WEIGHTS / model for model in MODELS}


def model_path(name: str) -> str:
    """The folder of an embedded pipeline; any other name is returned unchanged."""
    return str(WEIGHTS / name) if name in MODELS else name


def reward_checkpoint(name: str) -> str | None:
    """The embedded checkpoint of a reward model, or `None` if there is none under that name."""
    folder = WEIGHTS / name
    return str(folder) if folder.is_dir() and name not in MODELS else None


def embedded_rewards(base: str, names: Iterable[str]) -> dict[str, str]:
    """The checkpoints that rewards take with a base model: the embedded ones for an embedded model, else none.

    Args:
        base (`str`): name or path of the base model.
        names (`Iterable[str]`): the rewards for which no checkpoint was given.
    """
    found = {name: path for name in names if is_tiny(base) and (path := reward_checkpoint(name))}
    if found:
        logger.info("The base is a tiny model: scoring with the embedded checkpoints of %s", ", ".join(found))
    return found


def prompt_file(name: str) -> Path | None:
    """The file behind `tiny-train` (captions to align on) or `tiny-heldout` (captions no training has seen)."""
    return WEIGHTS.parent / f"prompts_{name.removeprefix('tiny-')}.txt" if name in PROMPTS else None
