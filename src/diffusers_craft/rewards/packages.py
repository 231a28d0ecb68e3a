# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The official packages `hpsv2` and `image-reward` as optional backends: the built-in numbers and checkpoints, slower."""

import importlib.metadata
from typing import Any

import torch
from PIL import Image

from ..errors import UserError
from .base import CheckpointReward
from .hps import HPSReward
from .image_reward import ImageRewardReward
from .preprocessing import to_rgb


def _failure(reward: str, problem: str, error: Exception | None = None) -> UserError:
    text = (str(error).strip() or "no message").splitlines()[0]
    cause = f" ({type(error).__name__}: {text})" if error else ""
    return UserError(f"reward {reward}: backend 'package'{problem}{cause}; the built-in backend needs no package")


def import_package(reward: str, package: str, module: str) -> Any:
    """A module of an official package; one line for the user says why it cannot be had, and what works instead."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # the packages fail in many ways: missing files, names and libraries
        needs = f" needs the package {package}, and"
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            raise _failure(reward, f"{needs} it is not installed (pip install --no-deps {package})") from None
        raise _failure(reward, f"{needs} its import failed", error) from None


class PackageReward(CheckpointReward):
    """A reward that the model of a `package` computes on RGB images, in its own precision; `_build` makes it by `module`."""

    def __init__(self, checkpoint: str | None = None, **options):
        self._code = import_package(self.name, self.package, self.module)
        super().__init__(checkpoint, **options)

    @property
    def source(self) -> dict[str, str]:
        try:
            version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:  # on the path, without its metadata
            version = "of unknown version"
        return {**self.checkpoint, "backend": f"{self.package} {version}", "unit": self.unit, "dtype": "package"}

    def _load(self) -> Any:
        try:
            with torch.inference_mode(False):  # what the package builds, it may write to later
                return self._build()
        except Exception as error:
            raise _failure(self.name, f": {self.package} could not load its model", error) from None


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
            scores[rows] = torch.tensor(list(map(float, found)))
        return scores


class PackageImageReward(PackageReward, ImageRewardReward):
    """`ImageReward.load(...).score(prompt, image)`, one pair at a time; it downloads a missing `med_config.json`."""

    package, module = "image-reward", "ImageReward.utils"

    def _build(self) -> Any:
        config = self._path.with_name("med_config.json")
        found = str(config) if config.exists() else None
        return self._code.load(str(self._path), device=self.device, med_config=found)

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([float(self.model.score(*pair)) for pair in zip(prompts, map(to_rgb, images))])
