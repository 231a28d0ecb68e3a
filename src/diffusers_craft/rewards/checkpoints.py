# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint files of reward models: found, checked by hash, described, read into models."""

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import UserError


def find_checkpoint(
    reward: str, checkpoint: str, filename: str | None, size: str, revision: str | None = None
) -> Path:
    """The local path of a checkpoint: a file or folder of the user, or a Hub id that is downloaded into the cache.

    Of a folder or repository the file `filename` is needed, or all of it. `reward` and `size` (of the download) are for
    error texts, `revision` is the commit of the Hub repository, the newest by default.
    """
    path = Path(checkpoint).expanduser()
    if path.exists():
        inside = path / filename if path.is_dir() and filename else path
        if not inside.exists():
            raise UserError(f"--reward_checkpoint {reward}: expected a file {filename} in {path}, found none")
        return inside
    wanted = f"{filename} of {checkpoint}" if filename else checkpoint
    if path.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise UserError(f"--reward_checkpoint {reward}: expected a file, a folder or a Hub id, found {checkpoint!r}")
    try:
        if filename:
            return Path(hf_hub_download(checkpoint, filename, revision=revision))
        patterns = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(checkpoint, allow_patterns=patterns, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        offline = "offline" if os.environ.get("HF_HUB_OFFLINE") else type(error).__name__
        raise UserError(
            f"reward {reward}: needs {wanted} ({size}) from huggingface.co/{checkpoint}, which is not in the cache and "
            f"could not be downloaded ({offline}); download it, or name a local copy: --reward_checkpoint {reward}=PATH"
        ) from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def check_hash(reward: str, path: Path, expected: str) -> None:
    """Raises if an official file is not the published one (SHA-256 in hex): damaged, or another version."""
    if (found := file_hash(path)) != expected:
        raise UserError(f"reward {reward}: expected sha256 {expected} of {path}, found {found}; delete it to retry")


def checkpoint_revision(path: Path) -> str:
    """The Hub commit that a cached file belongs to, or the start of the SHA-256 of a user's own weights."""
    parts = path.parts
    if "snapshots" in parts:
        return parts[parts.index("snapshots") + 1]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    weights = [file for file in files if file.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    return "sha256:" + hashlib.sha256("".join(map(file_hash, weights)).encode()).hexdigest()[:16]


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
    raise UserError(f"--reward_checkpoint {reward}: expected tensors only in {path}, found {found}")


@contextmanager
def fitting_state(reward: str, expected: str, path: Path, found: str = "another") -> Iterator[None]:
    """Ends in one line where a model does not take a file's tensors: what was `expected` of the file and what was `found`."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip().strip("'\"")
        raise UserError(
            f"--reward_checkpoint {reward}: expected {expected} in {path}, found {found} ({reason})"
        ) from None


def fill_model(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Gives a model on the meta device the tensors of `state` themselves, uncopied; `RuntimeError` if they do not fit."""
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                if name != "position_ids":  # the only buffer that transformers' models do not save
                    raise RuntimeError(f"no {name}")
                module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape)


def build_linear_head(reward: str, state: dict[str, torch.Tensor], path: Path) -> nn.Sequential:
    """A chain of linear layers with one output; its sizes are read from the tensors.

    The official heads have dropout and no activations, so at inference they are nothing else. Names in `state` are
    `<prefix>.<number>.weight` and `.bias`; the numbers give the order.
    """
    weights = {name.removesuffix(".weight"): value for name, value in state.items() if name.endswith(".weight")}
    layers, width = nn.Sequential(), None
    for name, weight in sorted(weights.items(), key=lambda item: int(item[0].rsplit(".", 1)[-1])):
        if weight.ndim != 2 or f"{name}.bias" not in state or (width is not None and weight.shape[1] != width):
            raise UserError(f"--reward_checkpoint {reward}: expected a chain of linear layers in {path}, found {name}")
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight.float(), "bias": state[f"{name}.bias"].float()})
        layers.append(layer)
        width = weight.shape[0]
    if width != 1:
        raise UserError(f"--reward_checkpoint {reward}: expected a head with one output in {path}, found {width}")
    return layers
