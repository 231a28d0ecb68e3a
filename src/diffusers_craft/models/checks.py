# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a base model must be before hours are spent on it: parts that are known, whole, and made for each other.

Where diffusers or transformers would load something else in silence (an empty tokenizer, a class out of the model's own
folder) or fail after the data was encoded, one line says what was expected and what was found.
"""

import json
import logging
import pickle
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError

from ..core.load import hub_reason
from ..errors import UserError


logger = logging.getLogger(__name__)

_LIBRARIES = ("diffusers", "transformers")  # what parts of a pipeline may be made of
# Parts that only a safety checker needs, which `load_pipeline` leaves out.
_UNUSED = ("safety_checker", "feature_extractor")
_WEIGHTS = "diffusion_pytorch_model"  # as diffusers names the files of a model, perhaps with a number or a variant
_PICKLES = "*pytorch_model*.bin"  # diffusers' and transformers'
_TOLD: set[str] = set()
_NO_LENGTH = 1_000_000  # transformers gives a tokenizer without `model_max_length` a number beyond this
_FILLED = 0.9  # of an encoder's vocabulary; T5's and Llama's have rows that no token uses


@contextmanager
def library_errors(place: str, wanted: str) -> Iterator[None]:
    """Says in one line what a library could not load: its errors for files that are missing, broken or do not fit."""
    broken = (SafetensorError, SingleFileComponentError, pickle.UnpicklingError, MemoryError)
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, *broken) as error:
        if hub := hub_reason(error):
            raise UserError(f"{place}: {wanted}, found {hub}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 200 else reason[:200].rsplit(" ", 1)[0] + " …"
        raise UserError(f"{place}: {wanted} (diffusers {diffusers.__version__} says: {reason})") from error


def check_index(name: str, index: dict[str, Any]) -> None:
    """Refuses a pipeline whose classes come from elsewhere than diffusers and transformers: loading would run them."""
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not hasattr(diffusers, kind):
        raise UserError(f"model {name!r}: expected a pipeline class of diffusers as _class_name, found {kind!r}")
    for part, value in index.items():
        if not isinstance(value, (list, tuple)) or part in _UNUSED:
            continue
        if len(value) == 2 and value[0] is None and value[1] is None:
            continue
        if len(value) != 2 or not _known_library(value[0]):
            raise UserError(f"model {name!r}: expected {part} of diffusers or transformers, found {list(value)}")


def _known_library(name: Any) -> bool:
    """Of parts: diffusers, transformers, or a folder of diffusers' pipelines, which keeps some models' own encoders."""
    if not isinstance(name, str) or not name.isidentifier():
        return False
    return name in _LIBRARIES or find_spec(f"diffusers.pipelines.{name}") is not None


def missing_parts(name: str, folder: Path, given: Container[str]) -> dict[str, None]:
    """The parts that a folder was saved without, as SD3 may be without T5: diffusers wants to be told.

    Another missing part is a `UserError`: transformers 5 makes up an empty tokenizer where there is none.
    """
    index = json.loads((folder / DiffusionPipeline.config_name).read_text(encoding="utf-8"))
    kinds = {part: kind for part, kind in index.items() if isinstance(kind, list)}
    for file in ("None.py", *(f"{part}/{kind[0]}.py" for part, kind in kinds.items())):
        if (folder / file).exists():  # diffusers before 0.35 imports what is called like a part's library
            raise UserError(f"model {name!r}: expected no code in its folder, found {file}")
    named = {part: bool(kind[-1]) for part, kind in kinds.items()}
    missing = [part for part in named if named[part] and part not in given and not (folder / part).is_dir()]
    if missing and missing[0] not in _UNUSED:
        raise UserError(f"model {name!r}: expected a whole pipeline, found no {missing[0]}/ in it")
    return {part: None for part in named if not named[part] or part in missing}


def warn_of_pickles(name: str, folder: Path) -> None:
    """Warns of parts whose weights are there in pickled files alone, which diffusers and transformers load in silence."""
    parts = [part for part in sorted(folder.iterdir()) if part.name not in _UNUSED and any(part.glob(_PICKLES))]
    if pickled := [f"{part.name}/" for part in parts if not any(part.glob("*.safetensors"))]:
        words = f"model {name!r}: expected weights as .safetensors, found pickled ones (.bin) alone in {', '.join(pickled)}"
        if words not in _TOLD:  # a run loads its base more than once
            logger.warning(words)
        _TOLD.add(words)


def only_variant(files: Iterable[str]) -> str | None:
    """The variant, such as `fp16`, of which alone there are weights among the names of a denoiser's files."""
    names = [file.rsplit("/", 1)[-1].split(".") for file in files]
    parts = [name for name in names if name[0].startswith(_WEIGHTS) and name[-1] in ("safetensors", "bin")]
    variants = {part[1].split("-")[0] for part in parts if len(part) == 3}
    return variants.pop() if len(variants) == 1 and all(len(part) == 3 for part in parts) else None


def check_parts(name: str, pipeline: DiffusionPipeline) -> None:
    """Refuses tokenizers that are not their encoders', and a UNet that takes more than latents."""
    parts = pipeline.components
    for part, tokenizer in parts.items():
        encoder = parts.get(part.replace("tokenizer", "text_encoder"))
        if part.startswith("tokenizer") and tokenizer is not None and encoder is not None:
            _check_tokenizer(f"model {name!r}: {part}", tokenizer, encoder)
    unet, vae = parts.get("unet"), parts.get("vae")
    if unet is not None and vae is not None:
        check_channels(name, unet.config.in_channels, vae.config.latent_channels)


def check_trainable(name: str, pipeline: DiffusionPipeline) -> None:
    """Refuses what draws, but that no denoising loss trains, or trains with noise of another model."""
    unet, scheduler = pipeline.components.get("unet"), pipeline.scheduler
    if unet is not None and unet.config.get("time_cond_proj_dim") is not None:
        found = "one that takes the guidance scale, as distilled LCM models do"
        raise UserError(f"model {name!r}: expected the UNet of a base model, found {found}")
    kind = type(scheduler).__name__
    if unet is not None and not hasattr(scheduler, "init_noise_sigma"):
        raise UserError(
            f"model {name!r}: expected a scheduler with which {type(pipeline).__name__} draws, found {kind}"
        )
    # diffusers' own default is no model's schedule: the file is another scheduler's, EDM's or a flow's.
    if {"beta_start", "trained_betas"} <= set(scheduler.config.get("_use_default_values") or ()):
        wanted = f"expected betas in its scheduler_config.json for {kind}"
        raise UserError(f"model {name!r}: {wanted}, found none (is the file of another scheduler?)")
    _warn_of_distilled(scheduler)


def check_channels(name: str, channels: int, expected: int) -> None:
    """Refuses a UNet for inpainting (9 channels) or editing (8), whatever the pipeline calls itself."""
    if channels != expected:
        kind = {9: " (inpainting)", 8: " (image editing or upscaling)"}.get(channels, "")
        found = f"{channels}{kind}"
        raise UserError(f"model {name!r}: expected a UNet of {expected} input channels as the latents, found {found}")


def _check_tokenizer(place: str, tokenizer: Any, encoder: torch.nn.Module) -> None:
    size, tokens = getattr(encoder.config, "vocab_size", None), len(tokenizer)
    if size is not None and not _FILLED * size <= tokens <= size:
        wanted = f"expected a vocabulary for the encoder's {size} tokens"
        raise UserError(f"{place}: {wanted}, found {tokens} tokens (are files missing in its folder?)")
    length = getattr(encoder.config, "max_position_embeddings", None)
    if tokenizer.model_max_length > _NO_LENGTH and length is not None:
        tokenizer.model_max_length = length  # its file does not say; longer captions have no position


def _warn_of_distilled(scheduler: SchedulerMixin) -> None:
    """Warns of models that draw in a few steps: a denoising loss trains that away, and 30 steps draw them badly."""
    config, kind = scheduler.config, type(scheduler).__name__
    trailing = config.get("timestep_spacing") == "trailing" and config.get("prediction_type", "epsilon") == "epsilon"
    if kind in ("LCMScheduler", "TCDScheduler") or trailing:
        mark = f"{kind} with timestep_spacing trailing" if trailing else kind
        logger.warning(
            f"the model looks like one distilled to a few steps (turbo, LCM, Lightning: {mark}); training and candidates"
            " follow the many-step base model, and the result may no longer draw in a few steps"
        )


def count_cut_prompts(pipeline: DiffusionPipeline, prompts: Iterable[str]) -> tuple[int, int]:
    """How many prompts are longer than any of a pipeline's text encoders reads, and how many tokens the widest reads."""
    tokenizers = [
        part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None
    ]
    window = max(tokenizer.model_max_length for tokenizer in tokenizers)
    widest = [tokenizer for tokenizer in tokenizers if tokenizer.model_max_length == window]
    lengths = zip(*(map(len, tokenizer(list(prompts), verbose=False).input_ids) for tokenizer in widest))
    return sum(min(length) > window for length in lengths), window


def warn_of_cut_prompts(pipeline: DiffusionPipeline, prompts: Iterable[str], what: str) -> None:
    """One warning with the number of prompts that are cut, where diffusers has one per batch or none."""
    distinct = list(dict.fromkeys(prompts))
    cut, window = count_cut_prompts(pipeline, distinct) if distinct else (0, 0)
    if cut:
        share = f"{cut} of {len(distinct)} {what}"
        logger.warning(f"{share} are longer than the {window} tokens that the text encoder reads: the rest is ignored")
