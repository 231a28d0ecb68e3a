# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The embedded default: a miniature text-to-image world (`world.py`), an exact judge (`scorer.py`), and small models."""

from pathlib import Path


WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("tiny-sd15", "tiny-sdxl")  # every command takes these names in place of a checkpoint
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


def prompt_file(name: str) -> Path | None:
    """The file behind `tiny-train` (captions to align on) or `tiny-heldout` (captions no training has seen)."""
    return WEIGHTS.parent / f"prompts_{name.removeprefix('tiny-')}.txt" if name in PROMPTS else None
