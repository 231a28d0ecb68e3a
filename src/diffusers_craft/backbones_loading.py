# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pipelines from wherever they are: the Hub, a folder, a single file, this package, or a training's output."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import deprecation_utils
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open

from . import tiny
from .workdir import RUN_FILE


LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that `load_lora_weights` looks for
_SD15, _SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
_NO_SAFETY_CHECKER = {"safety_checker": None, "requires_safety_checker": False}
# What a finished run leaves, by which a result is recognised, the first that is there.
TUNED_FILES = {"pipeline": "model_index.json", "lora": LORA_FILE, "unet": "config.json"}
# Of a checkpoint the averaged weights, where it keeps them: the run would end with those.
_LOADABLE = TUNED_FILES | {"averaged unet": "unet_ema/config.json", "checkpoint": "unet/config.json"}
# Where a single file in the original layout keeps a text encoder that only this family has.
_TEXT_ENCODERS = {"conditioner.embedders.1.": _SDXL, "cond_stage_model.transformer.": _SD15}


def load_pipeline(
    name_or_path: str,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    cache_dir: str | None = None,
    config: str | None = None,
    **components: Any,
) -> DiffusionPipeline:
    """Loads a text-to-image pipeline: from the Hub, a folder or a single file, or an embedded one by its name.

    Args:
        name_or_path (`str`): Hub id, pipeline folder, `.safetensors` file in the original layout, or `tiny-sd15` /
            `tiny-sdxl`.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.
        variant (`str`, *optional*): file variant such as `fp16`.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of the weights; a CPU always gets float32.
        device (`str` or `torch.device`, *optional*): defaults to the GPU if there is one, else the CPU.
        cache_dir (`str`, *optional*): where downloads are kept.
        config (`str`, *optional*): for a single file, the pipeline folder or Hub id that says how it is built; the
            default is the Hub id of the original model, which diffusers infers.
        components: parts that replace the pipeline's own, e.g. `unet=`.

    Returns:
        `DiffusionPipeline`: on `device`, without a safety checker.

    Raises:
        ValueError: if there is no pipeline under that name.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.float32 if device.type == "cpu" else dtype
    path = tiny.model_path(str(name_or_path))
    where = {"revision": revision, "cache_dir": cache_dir}
    class_name = pipeline_class_name(str(name_or_path), path, where)
    if class_name == _SD15:
        components = {**_NO_SAFETY_CHECKER, **components}
    if is_single_file(path):
        return _load_single_file(class_name, path, config, cache_dir, dtype, components).to(device)
    pipeline = DiffusionPipeline.from_pretrained(path, variant=variant, **where, **dtype_argument(dtype), **components)
    return pipeline.to(device)


def load_tuned_pipeline(
    name_or_path: str,
    base: str,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    cache_dir: str | None = None,
    config: str | None = None,
    fuse: bool = True,
) -> DiffusionPipeline:
    """Loads what a training left: a whole pipeline, or LoRA weights, a UNet or a checkpoint for its base.

    Args:
        name_or_path (`str`): Hub id or folder; whatever `load_pipeline` takes is a pipeline. Of a checkpoint,
            `unet_ema/` is loaded if it is there.
        base (`str`): the model that was trained, as `load_pipeline` takes it.
        revision, variant (`str`, *optional*): of the base.
        config (`str`, *optional*): of single files, as in `load_pipeline`.
        dtype, device, cache_dir: as in `load_pipeline`.
        fuse (`bool`, *optional*, defaults to `True`): add LoRA weights to the UNet's own, which makes it as fast as the
            base's and differs by rounding.

    Raises:
        ValueError: if one of the two is not there.
    """
    kind = _tuned_kind(name_or_path, cache_dir)
    options = {"dtype": dtype, "device": device, "cache_dir": cache_dir}
    if kind == "pipeline":
        return load_pipeline(name_or_path, config=config, **options)
    pipeline = load_pipeline(base, revision, variant, config=config, **options)
    if kind != "lora":
        where = {"subfolder": Path(_LOADABLE[kind]).parent.name or None, "cache_dir": cache_dir}
        unet = UNet2DConditionModel.from_pretrained(name_or_path, **where, **dtype_argument(pipeline.dtype))
        pipeline.unet = unet.to(pipeline.device)
        return pipeline
    pipeline.load_lora_weights(name_or_path, weight_name=LORA_FILE, cache_dir=cache_dir)
    if fuse:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline


def _tuned_kind(name_or_path: str, cache_dir: str | None) -> str:
    """What the run's own record says, for a folder may hold results of several runs; without one, what is there."""
    run = _find_file(name_or_path, RUN_FILE, cache_dir)
    use_lora = json.loads(run.read_text(encoding="utf-8")).get("options", {}).get("use_lora") if run else None
    kinds = [kind for kind in _LOADABLE if use_lora is None or (kind == "lora") == use_lora]
    found = next((kind for kind in kinds if _find_file(name_or_path, _LOADABLE[kind], cache_dir)), None)
    if found is None and use_lora:
        raise ValueError(f"model {str(name_or_path)!r}: expected {LORA_FILE} of a run with --use_lora, found none")
    return found or "pipeline"


def _find_file(name_or_path: str, file: str, cache_dir: str | None) -> Path | None:
    path = Path(tiny.model_path(str(name_or_path)))
    if path.exists():
        return path / file if (path / file).is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), file, cache_dir=cache_dir))
    except (OSError, ValueError, EntryNotFoundError):  # no such file, repository or network, or no Hub id at all
        return None


def is_single_file(path: str) -> bool:
    """Whether a model argument names one `.safetensors` file instead of a pipeline."""
    return path.endswith(".safetensors")


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword under which this version of diffusers' `from_pretrained` takes a dtype."""
    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}


def pipeline_class_name(name: str, path: str, where: dict[str, str | None]) -> str:
    """The diffusers class of a pipeline, without loading any weights.

    Args:
        name (`str`): as the user wrote it, for the message.
        path (`str`): the same after `tiny.model_path`.
        where (`dict`): `revision` and `cache_dir`.

    Raises:
        ValueError: if there is no pipeline.
    """
    if is_single_file(path):
        return _single_file_class_name(path)
    try:
        return DiffusionPipeline.load_config(path, **where)["_class_name"]
    except (OSError, KeyError) as error:
        embedded = ", ".join(tiny.MODELS)
        raise ValueError(
            f"model {name!r}: expected a diffusers pipeline folder, a reachable Hub id, a .safetensors file or one of {embedded}"
            f" (diffusers {diffusers.__version__} says: {' '.join(str(error).split())[:200]})"
        ) from error


def _single_file_class_name(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"model {path!r}: expected a .safetensors file, found none")
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    for prefix, class_name in _TEXT_ENCODERS.items():
        if any(name.startswith(prefix) for name in names):
            return class_name
    wanted = "expected a whole Stable Diffusion 1.5 or SDXL checkpoint in the original layout"
    raise ValueError(f"model {path!r}: {wanted}, found weights like {names[0]!r} and no text encoder")


def _load_single_file(
    class_name: str, path: str, config: str | None, cache_dir: str | None, dtype: torch.dtype, components: dict
) -> DiffusionPipeline:
    if config is not None:
        config = tiny.model_path(config)
    pipeline_class = getattr(diffusers, class_name)
    try:
        options = {"config": config, "cache_dir": cache_dir, "torch_dtype": dtype}
        return pipeline_class.from_single_file(path, **options, **components)
    except OSError as error:
        wanted = "expected a pipeline folder or a reachable Hub id with the configuration of this file"
        raise ValueError(
            f"--single_file_config: {wanted}, found {config or 'none'} ({' '.join(str(error).split())[:200]})"
        ) from error
