# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The official packages `hpsv2` and `image-reward` as optional backends, for whom they work.

They give the numbers of the built-in backends, more slowly, and need not be installed. Checkpoints are those of the
built-in backends, whose classes they extend.
"""

import importlib
from abc import abstractmethod
from functools import cached_property
from importlib import metadata
from typing import Any

import torch
from PIL import Image

from ..errors import UserError
from .base import CheckpointReward
from .clip_score import HPSReward
from .image_reward import ImageRewardReward
from .preprocessing import to_rgb


def _one_line(error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text}"


def import_package(reward: str, package: str, module: str) -> Any:
    """A module of an official package; one line for the user says why it cannot be had, and what works instead."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # the packages fail in many ways: missing files, names and libraries
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        install = f"it is not installed (pip install --no-deps {package})"
        found = install if missing else f"its import failed ({_one_line(error)})"
        raise UserError(
            f"reward {reward}: backend 'package' needs the package {package}, and {found}; "
            "the built-in backend needs no package"
        ) from None


class PackageReward(CheckpointReward):
    """A reward that an official package computes, on RGB images, in the package's own precision."""

    package: str
    module: str

    def __init__(self, checkpoint: str | None = None, **options):
        self._code = import_package(self.name, self.package, self.module)
        super().__init__(checkpoint, **options)

    @cached_property
    def checkpoint(self) -> dict[str, str]:
        try:
            version = metadata.version(self.package)
        except metadata.PackageNotFoundError:  # on the path, without its metadata
            version = "of unknown version"
        return {**super().checkpoint, "backend": f"{self.package} {version}"}

    @property
    def source(self) -> dict[str, str]:
        return {**super().source, "dtype": "package"}

    @abstractmethod
    def _build(self) -> Any:
        """The package's own model."""

    def _load(self) -> Any:
        try:
            with torch.inference_mode(False):  # what the package builds, it may write to later
                return self._build()
        except Exception as error:
            raise UserError(
                f"reward {self.name}: backend 'package': {self.package} could not load its model ({_one_line(error)}); "
                "the built-in backend needs no package"
            ) from None


class PackageHPSReward(PackageReward, HPSReward):
    """`hpsv2.score` with `hps_version="v2.1"`; it downloads CLIP-H's own weights too, and reloads HPS's for each prompt."""

    package, module = "hpsv2", "hpsv2.img_score"

    def _build(self) -> Any:
        self._code.device = str(self.device)
        self._code.initialize_model()
        return self._code

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        scores = torch.empty(len(images))
        for prompt in dict.fromkeys(prompts):
            rows = [i for i, other in enumerate(prompts) if other == prompt]
            pictures = [to_rgb(images[i]) for i in rows]
            found = self.model.score(pictures, prompt, cp=str(self._path), hps_version="v2.1")
            scores[rows] = torch.tensor([float(score) for score in found])
        return scores


class PackageImageReward(PackageReward, ImageRewardReward):
    """`ImageReward.load(...).score(prompt, image)`, one pair at a time.

    `med_config.json` beside a local file is used, otherwise the package downloads it.
    """

    package, module = "image-reward", "ImageReward.utils"

    def _build(self) -> Any:
        config = self._path.parent / "med_config.json"
        found = str(config) if config.exists() else None
        return self._code.load(str(self._path), device=self.device, med_config=found)

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        pairs = zip(prompts, images)
        return torch.tensor([float(self.model.score(prompt, to_rgb(image))) for prompt, image in pairs])
