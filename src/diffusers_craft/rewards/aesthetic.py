# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""LAION's aesthetic predictor (sac+logos+ava1): linear layers on CLIP's image half, which the CLIP score can share."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..core.bars import one_bar
from ..errors import UserError
from .base import CheckpointReward, l2_normalize
from .checkpoints import build_linear_head, file_hash, find_checkpoint, load_tensors, tower_precision
from .preprocessing import ClipProcessor


CLIP_ID, CLIP_REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
CLIP_SIZE = "1.71 GB"
HEAD_NAME = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_URL = f"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/{quote(HEAD_NAME)}"
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"


class ImageHalf(CLIPVisionModelWithProjection):
    """CLIP's image half, which takes a checkpoint of the whole without a word about the rest."""

    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale$", r"position_ids$"]


class ClipImageTower:
    """Images to embeddings by the CLIP in `folder`; the weights are read by the first image that is not remembered.

    `remember` embeddings (3 KB each for ViT-L/14) are kept for another reward or another pass over the same images.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, remember: int = 0):
        self.folder, self.device, self.dtype, self.remember = folder, device, dtype, remember
        self._known: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # least recently used first

    @cached_property
    def processor(self) -> ClipProcessor:
        # OpenAI's own preprocessing, with which the aesthetic head was trained, crops with torchvision.
        return ClipProcessor.from_folder(self.folder, half_even=True)

    @cached_property
    def model(self) -> CLIPVisionModelWithProjection:
        with one_bar():
            return ImageHalf.from_pretrained(self.folder).float().eval().to(self.device)

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """(B, D) float32 embeddings of one batch, not normalised, on `device`."""
        pixels = self.processor(images)
        if not self.remember:
            return self._embed(pixels)
        # What the tower sees decides, so two files of one picture share an entry and an edited one does not.
        keys = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in pixels]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            self._known.update(zip(new, self._embed(pixels[list(new.values())]).cpu()))
        for key in keys:
            self._known.move_to_end(key)
        embeddings = torch.stack([self._known[key] for key in keys]).to(self.device)
        while len(self._known) > self.remember:
            self._known.popitem(last=False)
        return embeddings

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        with tower_precision(self.device, self.dtype):
            return self.model(pixel_values=pixels.to(self.device)).image_embeds.float()


class ClipTowerReward(CheckpointReward):
    """A reward that sees images through a `tower`, which `share_image_pass` lets it share with others."""

    def __init__(self, checkpoint: str | None = None, **options):
        super().__init__(checkpoint, **options)
        self.tower = ClipImageTower(self._path, self.device, self.dtype)

    def release(self) -> None:
        self.tower.__dict__.pop("model", None)  # what it remembers stays
        super().release()


def share_image_pass(rewards: Iterable[Any], remember: int = 65536) -> None:
    """Makes rewards on one CLIP share its image half: each image is embedded once, in whatever order they score.

    Rewards without such a tower, or on another checkpoint, device or precision, stay as they are.
    """
    groups: dict[tuple, list[Any]] = {}
    for reward in rewards:
        if isinstance(tower := getattr(reward, "tower", None), ClipImageTower):
            groups.setdefault((tower.folder.resolve(), str(tower.device), tower.dtype), []).append(reward)
    for first, *others in groups.values():
        for reward in others:
            first.tower.remember = remember
            reward.tower = first.tower


def _download_head() -> Path:
    """The official head in torch's cache, verified against its known hash."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / HEAD_NAME
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            raise OSError("offline")
        torch.hub.download_url_to_file(HEAD_URL, str(path), hash_prefix=HEAD_SHA256, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"reward aesthetic: needs {path.name} (3.7 MB) from {HEAD_URL}, which could not be downloaded ({error}); "
            "download it, or name a local copy: --reward_checkpoint aesthetic=PATH"
        ) from None
    return path


class AestheticReward(ClipTowerReward):
    """LAION's aesthetic score, 1 to 10; prompts play no part.

    `checkpoint` is the head, used on `openai/clip-vit-large-patch14`, or a folder with a CLIP model, the head, or both.
    """

    name, unit = "aesthetic", "LAION aesthetic score, about 1 to 10"
    reads_prompts = False
    hub_id = f"{CLIP_ID} + {HEAD_NAME}"

    def _find(self, checkpoint: str | None) -> Path:
        path = Path(checkpoint).expanduser() if checkpoint else None
        if path and not path.exists():
            raise UserError(f"--reward_checkpoint {self.name}: expected a file or a folder, found {checkpoint!r}")
        head = path
        if path and path.is_dir():  # where CLIP's own weights may be too
            files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix in (".pth", ".pt", ".safetensors"))
            head = next((file for file in files if not file.name.startswith(("model", "pytorch_model"))), None)
        self._head = head or _download_head()
        if path and (path / "config.json").exists():
            return path
        return find_checkpoint(self.name, CLIP_ID, None, CLIP_SIZE, CLIP_REVISION)

    @cached_property
    def checkpoint(self) -> dict[str, str]:
        return {**super().checkpoint, "head": f"sha256:{file_hash(self._head)[:16]}"}

    def _load(self) -> nn.Sequential:
        head = build_linear_head(self.name, load_tensors(self.name, self._head), self._head).to(self.device)
        width = CLIPVisionConfig.from_pretrained(self._path).projection_dim
        if (found := head[0].in_features) != width:
            flag = f"--reward_checkpoint {self.name}"
            raise UserError(f"{flag}: expected a head for {width} features, found {found} in {self._head}")
        return head

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        return self._batched(lambda batch: self.model(l2_normalize(self.tower(batch)))[:, 0], images)
