# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Base models that come as one `.safetensors` file in the layout of the original releases."""

import inspect
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors import safe_open

from .. import tiny
from ..core.bars import one_bar
from ..core.load import hub_reason
from ..errors import UserError
from .checks import check_channels, library_errors


SUFFIX = ".safetensors"  # a model argument that ends so names one file instead of a pipeline
SD15, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
# Where the original layout keeps a text encoder that only this family has.
_TEXT_ENCODERS = {"conditioner.embedders.1.": SDXL, "cond_stage_model.transformer.": SD15}
_FIRST_LAYER, _VAE = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model."
_LATENT_CHANNELS = 4  # of both families


def single_file_class(path: str) -> str:
    """The diffusers class of a file's pipeline, by the names of its tensors."""
    if found := _text_encoder_class(names := tensor_shapes(path)):
        return found
    wanted = "expected a whole Stable Diffusion 1.5 or SDXL checkpoint in the original layout"
    found = f"weights like {min(names)!r}" if names else "no weights"
    raise UserError(f"model {path!r}: {wanted}, found {found} and no text encoder")


def has_text_encoder(path: str) -> bool:
    """Whether a file is a whole model, and no part of one."""
    return _text_encoder_class(tensor_shapes(path)) is not None


def _text_encoder_class(names: Iterable[str]) -> str | None:
    return next((_TEXT_ENCODERS[start] for start in _TEXT_ENCODERS if any(n.startswith(start) for n in names)), None)


def load_single_file(
    path: str, config: str | None, cache_dir: str | None, dtype: torch.dtype, components: dict[str, Any]
) -> DiffusionPipeline:
    """The pipeline of a file; `config` is where configuration and tokenizers are, `components` replace its own."""
    names = tensor_shapes(path)
    if _FIRST_LAYER in names:
        check_channels(path, names[_FIRST_LAYER][1], _LATENT_CHANNELS)
    if "vae" not in components and not any(name.startswith(_VAE) for name in names):
        wanted = "expected a VAE for a file that holds none, found none"
        raise UserError(f"--pretrained_vae_model_name_or_path: {wanted} (model {path!r})")
    config = None if config is None else tiny.model_path(config)
    options = {"config": config, "cache_dir": cache_dir, "torch_dtype": dtype}
    pipeline_class = getattr(diffusers, single_file_class(path))
    try:
        with library_errors(f"model {path!r}", "expected a whole checkpoint in the original layout"), one_bar():
            pipeline = pipeline_class.from_single_file(path, **options, **components)
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        wanted = "expected a pipeline folder or a reachable Hub id with the configuration of this file"
        reason = hub_reason(error.__cause__) or " ".join(str(error.__cause__).split())[:200]
        found = f"{config or 'none'} ({reason})"
        raise UserError(f"--single_file_config: {wanted}, found {found}") from error.__cause__
    edm = next((name for name in names if name.startswith("edm_")), None)
    if edm is not None and "EDM" not in type(pipeline.scheduler).__name__:
        wanted = "expected a model that predicts noise or velocity, or the scheduler of an EDM model"
        raise UserError(f"model {path!r}: {wanted}, found {edm!r}, the mark of one such as CosXL")
    pipeline.scheduler = _marked_scheduler(pipeline.scheduler, names)
    return pipeline


def tensor_shapes(path: str) -> dict[str, list[int]]:
    """Names and shapes of a file's tensors."""
    if not Path(path).is_file():
        raise UserError(f"model {path!r}: expected a .safetensors file, found none")
    with library_errors(f"model {path!r}", "expected a .safetensors file"):
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}


def _marked_scheduler(scheduler: Any, names: Container[str]) -> Any:
    """The scheduler of a velocity model where the file says that it is one, which diffusers does not read.

    Files of NoobAI-XL and its kin hold empty tensors `v_pred` and, with zero terminal SNR, `ztsnr`.
    """
    if "v_pred" not in names:
        return scheduler
    kind, changes = type(scheduler), {"prediction_type": "v_prediction"}
    if "ztsnr" in names:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in inspect.signature(kind).parameters:  # as PNDM's, which SD1.5 comes with
            kind, changes = DDIMScheduler, changes | {"clip_sample": False}
    return kind.from_config(scheduler.config, **changes)
