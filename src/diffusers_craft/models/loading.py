# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pipelines from wherever they are: the Hub, a folder, a single file, this package, or a training's output."""

import argparse
import inspect
import json
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import deprecation_utils
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open

from .. import tiny
from ..core.workdir import RUN_FILE
from ..errors import UserError


LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that `load_lora_weights` looks for
_SD15, _SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
_SINGLE_FILE = ".safetensors"  # a model argument that ends so names one file instead of a pipeline
# What a finished run leaves, by which a result is recognised, the first that is there.
TUNED_FILES = {"pipeline": "model_index.json", "lora": LORA_FILE, "unet": "config.json"}
# Of a checkpoint the averaged weights, where it keeps them: the run would end with those.
DENOISERS = ("unet", "transformer")  # what is trained of a pipeline, by the name of its part
_CHECKPOINTS = [f"{part}{ema}/config.json" for ema in ("_ema", "") for part in DENOISERS]
_LOADABLE = TUNED_FILES | {file: file for file in _CHECKPOINTS}
# Where a single file in the original layout keeps a text encoder that only this family has.
_TEXT_ENCODERS = {"conditioner.embedders.1.": _SDXL, "cond_stage_model.transformer.": _SD15}


def add_source_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declares `--revision`, `--variant`, `--single_file_config` and `--cache_dir`, which `load_pipeline` takes."""
    parser.add_argument("--revision", help="Branch, tag or commit of the model on the Hub.")
    parser.add_argument("--variant", help="Variant of the model files, e.g. fp16.")
    parser.add_argument(
        "--single_file_config",
        help="For a single .safetensors file: folder or Hub id of a pipeline with its configuration and"
        " tokenizers; the default is the original model's id, which diffusers infers.",
    )
    parser.add_argument("--cache_dir", help="Where downloads and caches are kept; default: HF_HOME.")


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
    """Loads a text-to-image pipeline, without safety checker: from the Hub, a folder or file, or an embedded one by name.

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

    Raises:
        UserError: if there is no pipeline under that name, or a part of it is missing or broken.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.float32 if device.type == "cpu" else dtype
    name, path = str(name_or_path), tiny.model_path(str(name_or_path))
    class_name = pipeline_class_name(name, revision, cache_dir)
    if class_name == _SD15:
        components = {"safety_checker": None, "requires_safety_checker": False, **components}
    if path.endswith(_SINGLE_FILE):
        return _load_single_file(class_name, path, config, cache_dir, dtype, components).to(device)
    components = {**_missing_parts(name, path, components), **components}
    options = {"revision": revision, "variant": variant, "cache_dir": cache_dir, **dtype_argument(dtype)}
    files = f" with files of --variant {variant}" if variant else ""
    with library_errors(f"model {name!r}", f"expected a whole pipeline{files}"):
        return DiffusionPipeline.from_pretrained(path, **options, **components).to(device)


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
    """Loads what a training left: a whole pipeline, or LoRA weights, a denoiser or a checkpoint for its base.

    Args:
        name_or_path (`str`): Hub id or folder; whatever `load_pipeline` takes is a pipeline. Of a checkpoint,
            the averaged weights are loaded if they are there.
        base (`str`): the model that was trained, as `load_pipeline` takes it.
        revision, variant (`str`, *optional*): of the base.
        dtype, device, cache_dir, config: as in `load_pipeline`.
        fuse (`bool`, *optional*, defaults to `True`): add LoRA weights to the model's own, which makes it as fast as the
            base's and differs by rounding.

    Raises:
        UserError: if one of the two is not there.
    """
    kind = _tuned_kind(name_or_path, cache_dir)
    options = {"dtype": dtype, "device": device, "cache_dir": cache_dir}
    if kind == "pipeline":
        return load_pipeline(name_or_path, config=config, **options)
    pipeline = load_pipeline(base, revision, variant, config=config, **options)
    if kind != "lora":
        where = {"subfolder": Path(_LOADABLE[kind]).parent.name or None, "cache_dir": cache_dir}
        component = denoiser_name(pipeline)
        part_class, shown = type(getattr(pipeline, component)), "UNet" if component == "unet" else component
        with library_errors(f"model {str(name_or_path)!r}", f"expected a {shown} that was trained from the base"):
            part = part_class.from_pretrained(name_or_path, **where, **dtype_argument(pipeline.dtype))
        setattr(pipeline, component, part.to(pipeline.device))
        return pipeline
    with library_errors(f"model {str(name_or_path)!r}", "expected LoRA weights that were trained on the base"):
        pipeline.load_lora_weights(name_or_path, weight_name=LORA_FILE, cache_dir=cache_dir)
    if fuse:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline


def denoiser_name(pipeline: DiffusionPipeline) -> str:
    """Which part of a pipeline denoises, one of `DENOISERS`."""
    return next(name for name in DENOISERS if getattr(pipeline, name, None) is not None)


def denoiser_folder(folder: Path) -> str:
    """The part of `DENOISERS` that a pipeline's folder holds; the first where it holds none."""
    return next((name for name in DENOISERS if (folder / name / "config.json").is_file()), DENOISERS[0])


def pipeline_class_name(name: str, revision: str | None = None, cache_dir: str | None = None) -> str:
    """The diffusers class of a pipeline, without loading any weights; the arguments are those of `load_pipeline`."""
    path = tiny.model_path(name)
    if path.endswith(_SINGLE_FILE):
        names = _single_file_names(path)
        for prefix, class_name in _TEXT_ENCODERS.items():
            if any(name.startswith(prefix) for name in names):
                return class_name
        wanted = "expected a whole Stable Diffusion 1.5 or SDXL checkpoint in the original layout"
        raise UserError(f"model {path!r}: {wanted}, found weights like {names[0]!r} and no text encoder")
    wanted = "expected a diffusers pipeline folder, a reachable Hub id, a .safetensors file or one of "
    with library_errors(f"model {name!r}", wanted + ", ".join(tiny.MODELS)):
        config = DiffusionPipeline.load_config(path, revision=revision, cache_dir=cache_dir)
    if "_class_name" not in config:
        raise UserError(
            f"model {name!r}: expected a diffusers pipeline, found a {DiffusionPipeline.config_name} of none"
        )
    return config["_class_name"]


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword under which this version of diffusers' `from_pretrained` takes a dtype."""
    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}


@contextmanager
def library_errors(place: str, wanted: str) -> Iterator[None]:
    """Says in one line what a library could not load: its errors for files that are missing, broken or do not fit."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{place}: {wanted} (diffusers {diffusers.__version__} says: {reason})") from error


def _missing_parts(name: str, path: str, given: Container[str]) -> dict[str, None]:
    """The parts that a folder was saved without, as SD3 may be without T5: diffusers wants to be told.

    Another missing part is a `UserError`: transformers 5 makes up an empty tokenizer where there is none.
    """
    if not Path(path).is_dir():
        return {}
    index = json.loads((Path(path) / DiffusionPipeline.config_name).read_text(encoding="utf-8"))
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind[-1] and part not in given]
    if missing := [part for part in parts if not (Path(path) / part).is_dir()]:
        raise UserError(f"model {name!r}: expected a whole pipeline, found no {missing[0]}/ in it")
    return {part: None for part, kind in index.items() if isinstance(kind, list) and not kind[-1]}


def _tuned_kind(name_or_path: str, cache_dir: str | None) -> str:
    """What the run's own record says, for a folder may hold results of several runs; without one, what is there."""
    run = _find_file(name_or_path, RUN_FILE, cache_dir)
    use_lora = json.loads(run.read_text(encoding="utf-8")).get("options", {}).get("use_lora") if run else None
    kinds = [kind for kind in _LOADABLE if use_lora is None or (kind == "lora") == use_lora]
    found = next((kind for kind in kinds if _find_file(name_or_path, _LOADABLE[kind], cache_dir)), None)
    if found is None and use_lora:
        raise UserError(f"model {str(name_or_path)!r}: expected {LORA_FILE} of a run with --use_lora, found none")
    return found or "pipeline"


def _find_file(name_or_path: str, file: str, cache_dir: str | None) -> Path | None:
    path = Path(tiny.model_path(str(name_or_path)))
    if path.exists():
        return path / file if (path / file).is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), file, cache_dir=cache_dir))
    except (OSError, ValueError, EntryNotFoundError):  # no such file, repository or network, or no Hub id at all
        return None


def _single_file_names(path: str) -> list[str]:
    """The names of a single file's tensors."""
    if not Path(path).is_file():
        raise UserError(f"model {path!r}: expected a .safetensors file, found none")
    with library_errors(f"model {path!r}", "expected a .safetensors file"):
        with safe_open(path, framework="pt") as file:
            return list(file.keys())


def _load_single_file(
    class_name: str, path: str, config: str | None, cache_dir: str | None, dtype: torch.dtype, components: dict
) -> DiffusionPipeline:
    config = None if config is None else tiny.model_path(config)
    options = {"config": config, "cache_dir": cache_dir, "torch_dtype": dtype}
    try:
        pipeline = getattr(diffusers, class_name).from_single_file(path, **options, **components)
    except OSError as error:
        wanted = "expected a pipeline folder or a reachable Hub id with the configuration of this file"
        found = f"{config or 'none'} ({' '.join(str(error).split())[:200]})"
        raise UserError(f"--single_file_config: {wanted}, found {found}") from error
    pipeline.scheduler = _marked_scheduler(pipeline.scheduler, _single_file_names(path))
    return pipeline


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
