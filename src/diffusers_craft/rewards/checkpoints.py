# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint files of reward models: found, hashed, read into models; the precision these run in."""

import copy
import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.func import functional_call

from ..core.load import hub_reason
from ..errors import UserError


def find_checkpoint(reward: str, checkpoint: str, filename: str | None, size: str, revision: str | None) -> Path:
    """The file `filename`, or all, of what the user has at `checkpoint` or of a Hub id, downloaded; `size` in words."""
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
    except (OSError, HFValidationError) as error:  # the Hub's other errors are kinds of OSError
        why = "offline" if os.environ.get("HF_HUB_OFFLINE") else hub_reason(error) or type(error).__name__
        raise UserError(
            f"reward {reward}: needs {wanted} ({size}) from huggingface.co/{checkpoint}, which is not in the cache and "
            f"could not be downloaded ({why}); download it, or name a local copy: --reward_checkpoint {reward}=PATH"
        ) from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return sha_fileobj(file, 1 << 22).hex()


def checkpoint_revision(path: Path) -> str:
    """The Hub commit that a cached file belongs to, or the start of the SHA-256 of a user's own weights."""
    if "snapshots" in path.parts:
        return path.parts[path.parts.index("snapshots") + 1]
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
    """Ends in one line where a model does not take a file's tensors: what was `expected` and what was `found`."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip().strip("'\"")
        raise UserError(
            f"--reward_checkpoint {reward}: expected {expected} in {path}, found {found} ({reason})"
        ) from None


def fill_model(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Gives a model on the meta device the tensors of `state`, uncopied; `RuntimeError` if they do not fit."""
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        if hasattr(module, "position_ids"):  # the only buffer that transformers' models do not save
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    if missing := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise RuntimeError(f"no {missing[0]}")


def build_linear_head(reward: str, state: dict[str, torch.Tensor], path: Path) -> nn.Sequential:
    """The linear layers `<prefix>.<number>` of `state`, which ends in one output; official heads have no activations."""
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    layers, width = nn.Sequential(), None
    for name in sorted(names, key=lambda name: int(name.rsplit(".", 1)[-1])):
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        if weight.ndim != 2 or bias is None or width not in (None, weight.shape[1]):
            raise UserError(f"--reward_checkpoint {reward}: expected a chain of linear layers in {path}, found {name}")
        width = weight.shape[0]
        layers.append(nn.Linear(weight.shape[1], width))
        layers[-1].load_state_dict({"weight": weight.float(), "bias": bias.float()})
    if width != 1:
        raise UserError(f"--reward_checkpoint {reward}: expected a head with one output in {path}, found {width}")
    return layers


@contextmanager
def tower_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`; for float32 none, and no TF32 either, in which a GPU convolves unless told otherwise."""
    if dtype != torch.float32:
        with torch.autocast(device.type, dtype=dtype):
            yield
        return
    # PyTorch 2.9 and newer have `conv`; the old names must not be mixed with the new ones.
    new = hasattr(torch.backends.cudnn, "conv")
    owners = (torch.backends.cudnn.conv if new else torch.backends.cudnn, torch.backends.cuda.matmul)
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, exact)
        yield
    finally:
        for owner, value in zip(owners, before):
            setattr(owner, name, value)


def _run_in_float32(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    weights = {name: weight.float() for name, weight in block.named_parameters()}
    return functional_call(block, weights, args, kwargs)


def rest_in_checkpoint_precision(model: nn.Module, blocks: list, embedding: nn.Module | None, autocast: bool) -> None:
    """Keeps the weights of `blocks` and the token `embedding` as they are in the file, and casts the rest to float32.

    Without `autocast` a block is cast while it runs: the numbers of a model cast as a whole, at half its memory.
    Rows of the embedding are cast by the float32 positions that they are added to.
    """
    resting = {id(weight) for module in (*blocks, embedding) if module for weight in module.parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in resting and tensor.is_floating_point():
            tensor.data = tensor.data.float()
    if not autocast and any(weight.dtype != torch.float32 for block in blocks for weight in block.parameters()):
        for block in blocks:
            # The copy shares the weights, and keeps the forward of its class.
            block.forward = partial(_run_in_float32, copy.copy(block).eval())
