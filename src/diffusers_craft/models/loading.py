# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pipelines from wherever they are: the Hub, a folder, a single file, or this package."""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import deprecation_utils
from huggingface_hub import list_repo_files

from .. import tiny
from ..core.bars import one_bar
from ..errors import UserError
from .checks import check_index, check_parts, library_errors, missing_parts, only_variant, warn_of_pickles
from .single_file import SD15, SUFFIX, load_single_file, single_file_class


LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that `load_lora_weights` looks for
# What a finished run leaves, by which a result is recognised, the first that is there.
TUNED_FILES = {"pipeline": "model_index.json", "lora": LORA_FILE, "unet": "config.json"}
DENOISERS = ("unet", "transformer")  # what is trained of a pipeline, by the name of its part


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
    if class_name == SD15:
        components = {"safety_checker": None, "requires_safety_checker": False, **components}
    if path.endswith(SUFFIX):
        pipeline = load_single_file(path, config, cache_dir, dtype, components)
    else:
        if Path(path).is_dir():
            components = {**missing_parts(name, Path(path), components), **components}
            warn_of_pickles(name, Path(path))
        options = {"revision": revision, "variant": variant, "cache_dir": cache_dir, **dtype_argument(dtype)}
        of_variant = f" with files of --variant {variant}" if variant else ""
        try:
            with library_errors(f"model {name!r}", f"expected a whole pipeline{of_variant}"), one_bar():
                pipeline = DiffusionPipeline.from_pretrained(path, **options, **components)
        except UserError as error:
            starts = tuple(f"{part}/" for part in DENOISERS)
            files = [file for file in files_of(path, revision) if file.startswith(starts)]
            if variant is None and (found := only_variant(files)):
                wanted = f"expected --variant {found} for weights that are there in that variant alone"
                raise UserError(f"model {name!r}: {wanted}, found no --variant") from error
            raise
    check_parts(name, pipeline)
    return pipeline.to(device)


def check_single_file_config(name: str, config: str | None) -> None:
    """Refuses `--single_file_config` for what is no single file, which would ignore it."""
    if config is not None and not name.endswith(SUFFIX):
        raise UserError(
            f"--single_file_config: expected a single {SUFFIX} file to go with it, found the model {name!r}"
        )


def files_of(path: str, revision: str | None = None) -> list[str]:
    """The names of all files in a folder or a repository of the Hub; none where it cannot be reached."""
    if Path(path).is_dir():
        return [file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file()]
    try:
        return list_repo_files(path, revision=revision)
    except Exception:  # no such repository, no network, whatever it is called: loading says so
        return []


def load_vae(name_or_path: str, cache_dir: str | None = None) -> AutoencoderKL:
    """Another VAE than a pipeline's own, in float32: that of a file without one, or SDXL's that holds in float16."""
    with library_errors("--pretrained_vae_model_name_or_path", "expected a Hub id or folder of a VAE"):
        return AutoencoderKL.from_pretrained(name_or_path, cache_dir=cache_dir, **dtype_argument(torch.float32))


def denoiser_name(pipeline: DiffusionPipeline) -> str:
    """Which part of a pipeline denoises, one of `DENOISERS`."""
    return next(name for name in DENOISERS if getattr(pipeline, name, None) is not None)


def denoiser_folder(folder: Path) -> str:
    """The part of `DENOISERS` that a pipeline's folder holds; the first where it holds none."""
    return next((name for name in DENOISERS if (folder / name / "config.json").is_file()), DENOISERS[0])


def pipeline_class_name(name: str, revision: str | None = None, cache_dir: str | None = None) -> str:
    """The diffusers class of a pipeline, without loading any weights; the arguments are those of `load_pipeline`."""
    path = tiny.model_path(name)
    if path.endswith(SUFFIX):
        return single_file_class(path)
    if Path(path).is_file():
        raise UserError(
            f"model {path!r}: expected a pipeline folder or a {SUFFIX} file, found {Path(path).suffix or 'a file'}"
        )
    wanted = "expected a diffusers pipeline folder, a reachable Hub id, a .safetensors file or one of "
    with library_errors(f"model {name!r}", wanted + ", ".join(tiny.MODELS)):
        config = DiffusionPipeline.load_config(path, revision=revision, cache_dir=cache_dir)
    check_index(name, config)
    return config["_class_name"]


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword under which this version of diffusers' `from_pretrained` takes a dtype."""
    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}
