# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a training left, ours or another's, loaded onto its base: a pipeline, LoRA weights, a denoiser, a checkpoint."""

from pathlib import Path, PurePosixPath
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file

from .. import tiny
from ..core.run_record import read_run_json
from ..core.workdir import RUN_FILE
from ..errors import UserError
from .checks import library_errors, only_variant
from .loading import DENOISERS, LORA_FILE, TUNED_FILES, denoiser_name, dtype_argument, files_of, load_pipeline
from .single_file import SUFFIX, has_text_encoder, tensor_shapes


# Of a checkpoint the averaged weights, where it keeps them: the run would end with those.
_CHECKPOINTS = [f"{part}{ema}/config.json" for ema in ("_ema", "") for part in DENOISERS]
_LOADABLE = TUNED_FILES | {file: file for file in _CHECKPOINTS}
_NO_OWNERS = ("", ".", "..", "~")  # how paths may begin
_DENOISER = "model.diffusion_model."  # in the original layout


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
    **components: Any,
) -> DiffusionPipeline:
    """Loads what a training left: a whole pipeline, or LoRA weights, a denoiser or a checkpoint for its base.

    Args:
        name_or_path (`str`): Hub id, folder or `.safetensors` file, on the Hub as `ORG/NAME/FILE`; whatever
            `load_pipeline` takes is a pipeline. LoRA weights may be of diffusers or kohya and have any name; a single
            file may hold a UNet alone, in diffusers' or the original layout. Of a checkpoint, the averaged weights are
            loaded if they are there.
        base (`str`): the model that was trained, as `load_pipeline` takes it.
        revision, variant (`str`, *optional*): of the base.
        dtype, device, cache_dir, config: as in `load_pipeline`.
        fuse (`bool`, *optional*, defaults to `True`): add LoRA weights to the model's own, which makes it as fast as the
            base's and differs by rounding.
        components: parts that replace the pipeline's own, e.g. `vae=`.

    Raises:
        UserError: if one of the two is not there.
    """
    name_or_path = str(name_or_path)
    folder, kind = _tuned_kind(name_or_path, cache_dir)
    options = {"dtype": dtype, "device": device, "cache_dir": cache_dir, **components}
    if kind == "pipeline":
        return load_pipeline(folder, config=config, **options)
    pipeline = load_pipeline(base, revision, variant, config=config, **options)
    if kind.endswith(SUFFIX) and not _is_lora(Path(folder) / kind):
        _replace_weights(pipeline, Path(folder) / kind)
    elif not kind.endswith(SUFFIX):
        _replace_denoiser(pipeline, folder, Path(_LOADABLE[kind]).parent.name, cache_dir)
    else:
        with library_errors(f"model {name_or_path!r}", "expected LoRA weights that were trained on the base"):
            pipeline.load_lora_weights(folder, weight_name=kind, cache_dir=cache_dir)
        if fuse:
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
    return pipeline


def _replace_denoiser(pipeline: DiffusionPipeline, folder: str, subfolder: str, cache_dir: str | None) -> None:
    """Takes the denoiser that diffusers saved in a folder or repository, in whatever variant it is there."""
    component = denoiser_name(pipeline)
    part_class, shown = type(getattr(pipeline, component)), "UNet" if component == "unet" else component
    where = {
        "subfolder": subfolder or None,
        "cache_dir": cache_dir,
        "variant": only_variant(_weight_files(folder, subfolder)),
    }
    with library_errors(f"model {folder!r}", f"expected a {shown} that was trained from the base"):
        part = part_class.from_pretrained(folder, **where, **dtype_argument(pipeline.dtype))
    setattr(pipeline, component, part.to(pipeline.device))


def _replace_weights(pipeline: DiffusionPipeline, file: Path) -> None:
    """Gives the base's denoiser the weights of one file, in diffusers' or the original layout."""
    denoiser, tensors = getattr(pipeline, denoiser_name(pipeline)), load_file(file)
    with library_errors(f"model {str(file)!r}", "expected the weights of a UNet that was trained from the base"):
        if any(name.startswith(_DENOISER) for name in tensors):
            tensors = convert_ldm_unet_checkpoint(tensors, dict(denoiser.config))
        denoiser.load_state_dict(tensors)


def _is_lora(file: Path) -> bool:
    return file.name == LORA_FILE or any("lora" in name for name in tensor_shapes(str(file)))


def _tuned_kind(name_or_path: str, cache_dir: str | None) -> tuple[str, str]:
    """Folder or repository, and a key of `_LOADABLE` or the name of a `.safetensors` file in it.

    What the run's own record says, for a folder may hold results of several runs; without one, what is there.
    """
    path, parts = Path(tiny.model_path(name_or_path)), name_or_path.split("/", 2)
    if path.suffix == SUFFIX and len(parts) == 3 and not path.exists() and parts[0] not in _NO_OWNERS:
        wanted = "expected a .safetensors file here, or ORG/NAME/FILE of the Hub"
        with library_errors(f"model {name_or_path!r}", wanted):
            path = Path(hf_hub_download("/".join(parts[:2]), parts[2], cache_dir=cache_dir))
        name_or_path = str(path)
    if path.is_file() and path.suffix == SUFFIX:
        return (name_or_path, "pipeline") if has_text_encoder(str(path)) else (str(path.parent), path.name)
    run = _find_file(name_or_path, RUN_FILE, cache_dir)
    use_lora = read_run_json(run)["options"].get("use_lora") if run else None
    kinds = [kind for kind in _LOADABLE if use_lora is None or (kind == "lora") == use_lora]
    found = next((kind for kind in kinds if _find_file(name_or_path, _LOADABLE[kind], cache_dir)), None)
    if found is None and use_lora:
        raise UserError(f"model {name_or_path!r}: expected {LORA_FILE} of a run with --use_lora, found none")
    if found is None and (files := _weight_files(name_or_path)):
        if len(files) > 1:
            wanted = f"expected one file of weights, or {name_or_path}/FILE"
            raise UserError(f"model {name_or_path!r}: {wanted}, found {', '.join(sorted(files)[:5])}")
        downloaded = _find_file(name_or_path, files[0], cache_dir)
        return _tuned_kind(str(downloaded), cache_dir)
    return name_or_path, LORA_FILE if found == "lora" else found or "pipeline"


def _weight_files(name_or_path: str, subfolder: str = "") -> list[str]:
    """The names of the `.safetensors` files at the top, or in a subfolder, of a folder or repository."""
    files = map(PurePosixPath, files_of(tiny.model_path(name_or_path)))
    return [file.name for file in files if file.suffix == SUFFIX and file.parent == PurePosixPath(subfolder)]


def _find_file(name_or_path: str, file: str, cache_dir: str | None) -> Path | None:
    path = Path(tiny.model_path(name_or_path))
    if path.exists():
        return path / file if (path / file).is_file() else None
    try:
        return Path(hf_hub_download(name_or_path, file, cache_dir=cache_dir))
    except (OSError, ValueError, EntryNotFoundError):  # no such file, repository or network, or no Hub id at all
        return None
