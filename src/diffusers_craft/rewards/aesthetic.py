# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""LAION's improved aesthetic predictor (sac+logos+ava1): linear layers on the CLIP ViT-L/14 image embedding."""

import os
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig

from ..errors import UserError
from .base import CheckpointReward, l2_normalize
from .checkpoints import build_linear_head, file_hash, find_checkpoint, load_tensors
from .clip_tower import CLIP_ID, CLIP_REVISION, CLIP_SIZE, ClipImageTower


HEAD_NAME = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_URL = f"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/{quote(HEAD_NAME)}"
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
HEAD_SUFFIXES = (".pth", ".pt", ".safetensors")


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


def _find_head(folder: Path) -> Path | None:
    """The head in a folder that may hold CLIP's own weights too."""
    files = sorted(path for path in folder.iterdir() if path.suffix in HEAD_SUFFIXES and path.is_file())
    return next((path for path in files if not path.name.startswith(("model", "pytorch_model"))), None)


def load_head(path: Path) -> nn.Sequential:
    """The head of a state dict in the official format."""
    return build_linear_head("aesthetic", load_tensors("aesthetic", path), path)


class AestheticReward(CheckpointReward):
    """LAION's aesthetic score, 1 to 10; prompts play no part.

    `rewards.clip_tower.share_image_pass` lets it share the image pass of `clip_score`.

    Args:
        checkpoint (`str`, *optional*): the head (`.pth` or `.safetensors`), used on `openai/clip-vit-large-patch14`, or a
            folder with a CLIP model, the head, or both. What is not there is downloaded.
    """

    name = "aesthetic"
    unit = "LAION aesthetic score, about 1 to 10"
    hub_id = f"{CLIP_ID} + {HEAD_NAME}"

    def __init__(self, checkpoint: str | None = None, **options):
        super().__init__(checkpoint, **options)
        self.tower = ClipImageTower(self._path, self.device, self.dtype)

    def _find(self, checkpoint: str | None) -> Path:
        path = Path(checkpoint).expanduser() if checkpoint else None
        if path and not path.exists():
            raise UserError(f"--reward_checkpoint {self.name}: expected a file or a folder, found {checkpoint!r}")
        head = _find_head(path) if path and path.is_dir() else path
        self._head = head or _download_head()
        if path and (path / "config.json").exists():
            return path
        return find_checkpoint(self.name, CLIP_ID, None, CLIP_SIZE, CLIP_REVISION)

    @cached_property
    def checkpoint(self) -> dict[str, str]:
        return {**super().checkpoint, "head": f"sha256:{file_hash(self._head)[:16]}"}

    def _load(self) -> nn.Sequential:
        head = load_head(self._head).to(self.device)
        width = CLIPVisionConfig.from_pretrained(self._path).projection_dim
        if head[0].in_features != width:
            raise UserError(
                f"--reward_checkpoint {self.name}: expected a head for {width} features, "
                f"found {head[0].in_features} in {self._head}"
            )
        return head

    def release(self) -> None:
        self.tower.release()
        super().release()

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        return self._batched(lambda batch: self.model(l2_normalize(self.tower(batch)))[:, 0], images)
