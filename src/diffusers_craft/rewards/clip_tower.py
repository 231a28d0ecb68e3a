# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The image half of OpenAI's CLIP ViT-L/14, which the aesthetic score and the CLIP score share."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from .precision import tower_precision
from .preprocessing import ClipProcessor


CLIP_ID, CLIP_REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
CLIP_SIZE = "1.71 GB"


class ImageHalf(CLIPVisionModelWithProjection):
    """CLIP's image half, which takes a checkpoint of the whole without a word about the rest."""

    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale$", r"position_ids$"]


class ClipImageTower:
    """Images to embeddings; the weights are read by the first image that is not remembered.

    `folder` holds a `CLIPModel` or `CLIPVisionModelWithProjection` with its preprocessing. Of `remember` embeddings (3 KB
    each for ViT-L/14) another reward, or another pass over the same images, needs neither the tower nor its weights.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, remember: int = 0):
        self.folder, self.device, self.dtype, self.remember = folder, device, dtype, remember
        self._known: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # least recently used first

    @property
    def key(self) -> tuple[str, str, str]:
        """Towers of one key give the same embeddings."""
        return str(self.folder.resolve()), str(self.device), str(self.dtype)

    @cached_property
    def processor(self) -> ClipProcessor:
        # OpenAI's own preprocessing, with which the aesthetic head was trained, crops with torchvision.
        return ClipProcessor.from_folder(self.folder, half_even=True)

    @cached_property
    def model(self) -> CLIPVisionModelWithProjection:
        return ImageHalf.from_pretrained(self.folder).float().eval().to(self.device)

    def release(self) -> None:
        """Frees the weights; what is remembered stays."""
        self.__dict__.pop("model", None)

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """(B, D) float32 embeddings of one batch, not normalised, on `device`."""
        pixels = self.processor(images)
        if not self.remember:
            return self._embed(pixels)
        # What the tower sees decides, so two files of one picture share an entry and an edited one does not.
        keys = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in pixels]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        fresh = dict(zip(new, self._embed(pixels[list(new.values())]).cpu())) if new else {}
        embeddings = [fresh[key] if key in fresh else self._known[key] for key in keys]
        for key, embedding in zip(keys, embeddings):
            self._known[key] = embedding
            self._known.move_to_end(key)
        while len(self._known) > self.remember:
            self._known.popitem(last=False)
        return torch.stack(embeddings).to(self.device)

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        with tower_precision(self.device, self.dtype):
            return self.model(pixel_values=pixels.to(self.device)).image_embeds.float()


def share_image_pass(rewards: Iterable[Any], remember: int = 65536) -> None:
    """Makes rewards on one CLIP (`aesthetic`, `clip_score`) share its image half: each image is embedded once.

    In whatever order they score, the second finds the embeddings of the first, `remember` of which are kept (200 MB for
    ViT-L/14). Rewards without such a tower, or on another checkpoint, device or precision, stay as they are.
    """
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for reward in rewards:
        if isinstance(getattr(reward, "tower", None), ClipImageTower):
            groups.setdefault(reward.tower.key, []).append(reward)
    for group in groups.values():
        if len(group) > 1:
            group[0].tower.remember = remember
            for reward in group[1:]:
                reward.tower = group[0].tower
