# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What CLIP-like rewards share: images to tensors, checkpoint files, and prompt-image cosines."""

import hashlib
import json
import os
import pickle
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from .base import Reward


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Transparency is dropped, as the models' own processors do; 16-bit images are scaled instead of clipped.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64)
        sixteen_bit = image.mode != "I" or values.max(initial=0) > 255  # older Pillow opens 16-bit PNGs as "I"
        return Image.fromarray((values // 256 if sixteen_bit else values).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


def normalize_pixels(
    pixels: torch.Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> torch.Tensor:
    """Subtracts the mean and divides by the deviation of each channel of a (B, 3, H, W) tensor."""
    shape = (1, -1, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def fit_and_pad(image: Image.Image, size: int) -> torch.Tensor:
    """HPS's geometry: the longest side to `size` (bicubic with antialiasing, on the float tensor), padded with black.

    hpsv2's `ResizeMaxSize`. Antialiasing is pinned, because torchvision's default for tensors changed over versions;
    a non-square image whose longest side is `size` already is padded too (hpsv2 forgets it).

    Returns:
        `torch.Tensor`: (3, size, size), about [0, 1] (bicubic overshoots).
    """
    pixels = _to_tensor(to_rgb(image))
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    if scale != 1:
        new_size = tuple(max(round(side * scale), 1) for side in (height, width))
        pixels = F.interpolate(pixels[None], new_size, mode="bicubic", align_corners=False, antialias=True)[0]
    rows, columns = size - pixels.shape[1], size - pixels.shape[2]
    return F.pad(pixels, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def crop_center(image: Image.Image, size: int, crop: int, half_even: bool = False) -> torch.Tensor:
    """CLIP's geometry: the short side to `size` (bicubic on 8-bit pixels), then the central `crop` x `crop` pixels.

    An odd margin cannot be halved: transformers' processors round its half down, torchvision's rounds it to even
    (`half_even`), which is a crop one pixel off for half of them.

    Returns:
        `torch.Tensor`: (3, crop, crop) in [0, 1].
    """
    image = to_rgb(image)
    width, height = image.size
    short = min(width, height)
    image = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
    margins = (image.width - crop, image.height - crop)
    left, top = (round(margin / 2) if half_even else margin // 2 for margin in margins)
    return _to_tensor(image.crop((left, top, left + crop, top + crop)))


def l2_normalize(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows of a (B, D) tensor scaled to length one, in float32."""
    embeddings = embeddings.float()
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Row-wise cosines of two (B, D) tensors, in float32: (B,)."""
    return (l2_normalize(first) * l2_normalize(second)).sum(-1)


def feature_tensor(output: torch.Tensor | Any) -> torch.Tensor:
    """The embedding that `CLIPModel.get_*_features` returns: a tensor, or since transformers 5 inside an output object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@dataclass(frozen=True)
class ClipProcessor:
    """Image preprocessing as a `preprocessor_config.json` describes it; CLIP's own values without that file."""

    size: int = 224
    crop: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    half_even: bool = False  # see `crop_center`

    @classmethod
    def from_folder(cls, folder: Path, half_even: bool = False) -> "ClipProcessor":
        path = folder / "preprocessor_config.json"
        if not path.exists():
            return cls(half_even=half_even)
        config = json.loads(path.read_text())
        size, crop = config["size"], config["crop_size"]
        return cls(
            size["shortest_edge"] if isinstance(size, dict) else size,
            crop["height"] if isinstance(crop, dict) else crop,
            tuple(config["image_mean"]),
            tuple(config["image_std"]),
            half_even,
        )

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """(B, 3, crop, crop) normalised pixels."""
        pixels = torch.stack([crop_center(image, self.size, self.crop, self.half_even) for image in images])
        return normalize_pixels(pixels, self.mean, self.std)


class PromptImageReward(Reward):
    """A reward of separate text and image towers, whose score is a function of their cosine."""

    @abstractmethod
    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        """(B, D) embeddings of one batch of images."""

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        """(B, D) embeddings of one batch of prompts."""

    def _scale(self) -> torch.Tensor | float:
        """What the cosine is multiplied by."""
        return 1.0

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        distinct = list(dict.fromkeys(prompts))
        index = {prompt: i for i, prompt in enumerate(distinct)}
        size = self.batch_size
        text = torch.cat([self.encode_prompts(distinct[i : i + size]) for i in range(0, len(distinct), size)])
        scores = []
        for start in range(0, len(images), size):
            rows = [index[prompt] for prompt in prompts[start : start + size]]
            scores.append(cosines(self.encode_images(images[start : start + size]), text[rows]))
        return torch.cat(scores) * self._scale()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _revision(path: Path) -> str:
    """The Hub commit that a cached file belongs to, or the start of the SHA-256 of a user's own weights."""
    parts = path.parts
    if "snapshots" in parts:
        return parts[parts.index("snapshots") + 1]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    weights = [file for file in files if file.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    return "sha256:" + hashlib.sha256("".join(map(file_hash, weights)).encode()).hexdigest()[:16]


def describe_checkpoint(asked: str, path: Path) -> dict[str, str]:
    """The `Reward.checkpoint` record of what was asked for and lies at `path`.

    Of a local path only the name is kept: the hash tells versions apart, and a folder may move.
    """
    named = path.name if Path(asked).expanduser().exists() else asked
    return {"checkpoint": named, "revision": _revision(path)}


def load_tensors(reward: str, path: Path) -> dict[str, Any]:
    """What a `.pt`, `.pth` or `.safetensors` file holds, on the CPU; code in a pickle is never executed."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        found = "a pickle with code or a damaged file"
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        found = str(error).strip().splitlines()[0]
    raise ValueError(f"--reward_checkpoint {reward}: expected tensors only in {path}, found {found}")


def check_hash(reward: str, path: Path, expected: str) -> None:
    """Raises if an official file is not the published one (SHA-256 in hex): damaged, or another version."""
    if (found := file_hash(path)) != expected:
        raise ValueError(f"reward {reward}: expected sha256 {expected} of {path}, found {found}; delete it to retry")


def find_checkpoint(
    reward: str, checkpoint: str, filename: str | None, size: str, revision: str | None = None
) -> Path:
    """The local path of a checkpoint: a path of the user, or a Hub id that is downloaded into the cache.

    Args:
        reward (`str`): name of the reward, for error texts.
        checkpoint (`str`): file, folder, or Hub id (`org/name`).
        filename (`str`, *optional*): the file that is needed; the whole repository by default.
        size (`str`): of the download, for error texts, e.g. `"1.97 GB"`.
        revision (`str`, *optional*): the commit of the Hub repository; the newest by default.

    Raises:
        ValueError: if there is no such path, or the download is not possible; one line that names what is missing.
    """
    path = Path(checkpoint).expanduser()
    if path.exists():
        inside = path / filename if path.is_dir() and filename else path
        if not inside.exists():
            raise ValueError(f"--reward_checkpoint {reward}: expected a file {filename} in {path}, found none")
        return inside
    wanted = f"{filename} of {checkpoint}" if filename else checkpoint
    if path.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise ValueError(f"--reward_checkpoint {reward}: expected a file, a folder or a Hub id, found {checkpoint!r}")
    try:
        if filename:
            return Path(hf_hub_download(checkpoint, filename, revision=revision))
        patterns = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(checkpoint, allow_patterns=patterns, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        offline = "offline" if os.environ.get("HF_HUB_OFFLINE") else type(error).__name__
        raise ValueError(
            f"reward {reward}: needs {wanted} ({size}) from huggingface.co/{checkpoint}, which is not in the cache and "
            f"could not be downloaded ({offline}); download it, or name a local copy: --reward_checkpoint {reward}=PATH"
        ) from None
