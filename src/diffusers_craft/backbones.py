# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The only place that knows how Stable Diffusion 1.5 and SDXL differ: one row of data each, and no branches elsewhere.

Conditioning travels as a dict of tensors with one row an image; `encoder_hidden_states` (B, tokens, width) is always
there, all other entries go to the UNet's `added_cond_kwargs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import deprecation_utils
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open

from . import tiny


LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that `load_lora_weights` looks for
_NO_SAFETY_CHECKER = {"safety_checker": None, "requires_safety_checker": False}


class ModelSource(NamedTuple):
    """Where a model comes from: the arguments of diffusers' `from_pretrained`."""

    name: str  # Hub id, folder, single .safetensors file, or the name of an embedded model
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    vae: str | None = None  # another VAE than the pipeline's own
    config: str | None = None  # for a single file: pipeline folder or Hub id with configuration and tokenizers


@dataclass
class Components:
    """The parts of a pipeline that training needs; VAE and text encoders go once the data is encoded."""

    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    force_zeros_for_empty_prompt: bool
    vae: AutoencoderKL | None = None
    text_encoders: list[torch.nn.Module] = field(default_factory=list)
    tokenizers: list[Any] = field(default_factory=list)

    def free_encoders(self) -> None:
        """Drops VAE and text encoders: latents and embeddings are cached."""
        self.vae, self.text_encoders = None, []


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
    class_name = _pipeline_class_name(str(name_or_path), path, where)
    if class_name == SD15.pipeline_class:
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
    """Loads what a training left: a whole pipeline, or LoRA weights or a UNet that replace those of its base.

    Args:
        name_or_path (`str`): Hub id or folder; whatever `load_pipeline` takes is a pipeline.
        base (`str`): the model that was trained, as `load_pipeline` takes it.
        revision, variant, config (`str`, *optional*): of the base.
        dtype, device, cache_dir: as in `load_pipeline`.
        fuse (`bool`, *optional*, defaults to `True`): add LoRA weights to the UNet's own, which makes it as fast as the
            base's and differs by rounding.

    Raises:
        ValueError: if one of the two is not there.
    """
    kind = next((kind for kind, file in _TUNED_FILES.items() if _has_file(name_or_path, file, cache_dir)), "pipeline")
    options = {"dtype": dtype, "device": device, "cache_dir": cache_dir}
    if kind == "pipeline":
        return load_pipeline(name_or_path, **options)
    pipeline = load_pipeline(base, revision, variant, config=config, **options)
    if kind == "unet":
        unet = UNet2DConditionModel.from_pretrained(
            name_or_path, cache_dir=cache_dir, **dtype_argument(pipeline.dtype)
        )
        pipeline.unet = unet.to(pipeline.device)
        return pipeline
    pipeline.load_lora_weights(name_or_path, weight_name=LORA_FILE, cache_dir=cache_dir)
    if fuse:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline


_TUNED_FILES = {"pipeline": "model_index.json", "lora": LORA_FILE, "unet": "config.json"}  # the first that is there


def _has_file(name_or_path: str, file: str, cache_dir: str | None) -> bool:
    path = Path(tiny.model_path(str(name_or_path)))
    if path.exists():
        return (path / file).is_file()
    try:
        hf_hub_download(str(name_or_path), file, cache_dir=cache_dir)
    except (OSError, ValueError, EntryNotFoundError):  # no such file, repository or network, or no Hub id at all
        return False
    return True


def is_single_file(path: str) -> bool:
    """Whether a model argument names one `.safetensors` file instead of a pipeline."""
    return path.endswith(".safetensors")


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword under which this version of diffusers' `from_pretrained` takes a dtype."""
    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}


@dataclass(frozen=True)
class Backbone:
    """A family of latent-diffusion UNets.

    Args:
        name (`str`): short name for logs and model cards.
        pipeline_class (`str`): name of the diffusers pipeline class.
        text_encoders (`tuple[str, ...]`): component names of the text encoders; tokenizers are named alike.
        hidden_state (`int`): which hidden state conditions the UNet; -1 is the last one after the final layer norm.
        sizes_and_pooled (`bool`): whether the UNet is also conditioned on picture sizes and a pooled text embedding
            (SDXL's micro-conditioning, arXiv 2307.01952, section 2.2).
        resolution (`int`): default side of the training images, pixels.
        max_train_steps (`int`): optimizer steps of the CRAFT recipe (arXiv 2603.18991).
        paper_hours (`float`): H100-hours of that fine-tuning in the paper, section 4.2.
    """

    name: str
    pipeline_class: str
    text_encoders: tuple[str, ...]
    hidden_state: int
    sizes_and_pooled: bool
    resolution: int
    max_train_steps: int
    paper_hours: float

    def load(self, source: ModelSource, device: str | torch.device = "cpu") -> Components:
        """The parts that training needs, in float32, with a DDPM scheduler made from the pipeline's own schedule.

        VAE and text encoders go to `device`. The UNet stays on the CPU: a small card holds it only once the encoders are
        gone, and perhaps not in float32.
        """
        pipeline = self.pipeline(source)
        return Components(
            unet=pipeline.unet,
            noise_scheduler=DDPMScheduler.from_config(pipeline.scheduler.config),
            force_zeros_for_empty_prompt=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
            vae=pipeline.vae.requires_grad_(False).to(device),
            text_encoders=[getattr(pipeline, name).requires_grad_(False).to(device) for name in self.text_encoders],
            tokenizers=[getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in self.text_encoders],
        )

    def pipeline(
        self, source: ModelSource, unet: UNet2DConditionModel | None = None, device: str | torch.device = "cpu"
    ) -> DiffusionPipeline:
        """The whole pipeline in float32 for saving or validation, around a trained `unet` if one is given.

        Raises:
            ValueError: if `source` is a pipeline of another class.
        """
        path = tiny.model_path(source.name)
        where = {"revision": source.revision, "cache_dir": source.cache_dir}
        found = _pipeline_class_name(source.name, path, where)
        if found != self.pipeline_class:
            expected = f"expected a {self.pipeline_class} for this script"
            raise ValueError(f"--pretrained_model_name_or_path: {expected}, found a {found} in {source.name!r}")
        components = {} if unet is None else {"unet": unet}
        if source.vae is not None:
            vae_argument = {"cache_dir": source.cache_dir, **dtype_argument(torch.float32)}
            components["vae"] = AutoencoderKL.from_pretrained(source.vae, **vae_argument)
        where |= {"variant": source.variant, "config": source.config}
        return load_pipeline(source.name, dtype=torch.float32, device=device, **where, **components)

    def tokenize(self, components: Components, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Token ids (B, tokens) for each text encoder, cut or padded to the length it was trained with."""
        return [
            tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in components.tokenizers
        ]

    @torch.no_grad()
    def encode_prompts(self, components: Components, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Text conditioning, one row a prompt, as the pipeline itself computes it.

        Returns:
            `dict[str, torch.Tensor]`: `encoder_hidden_states` (B, tokens, width) and, with `sizes_and_pooled`, the
            last encoder's projection `text_embeds` (B, projection); float32.
        """
        hidden, pooled = [], None
        tokens = self.tokenize(components, prompts)
        for ids, text_encoder in zip(tokens, components.text_encoders, strict=True):
            output = text_encoder(ids.to(text_encoder.device), output_hidden_states=True)
            pooled = output[0]
            last = self.hidden_state == -1
            hidden.append(output.last_hidden_state if last else output.hidden_states[self.hidden_state])
        conditioning = {"encoder_hidden_states": torch.cat(hidden, dim=-1).float()}
        if self.sizes_and_pooled:
            conditioning["text_embeds"] = pooled.float()
        return conditioning

    def encode_empty_prompt(self, components: Components) -> dict[str, torch.Tensor]:
        """The conditioning of the unconditional branch, one row: what the pipeline itself guides away from."""
        empty = self.encode_prompts(components, [""])
        if components.force_zeros_for_empty_prompt:
            empty = {name: torch.zeros_like(value) for name, value in empty.items()}
        return empty

    def size_conditioning(
        self, original_sizes: torch.Tensor, crop_top_lefts: torch.Tensor, target_sizes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Conditioning on sizes; always float32, since bfloat16 turns 1023 into 1024.

        Args:
            original_sizes (`torch.Tensor`): (B, 2) height and width before resizing, pixels.
            crop_top_lefts (`torch.Tensor`): (B, 2) top and left of the crop, pixels.
            target_sizes (`torch.Tensor`): (B, 2) height and width of the crop, pixels.

        Returns:
            `dict[str, torch.Tensor]`: `time_ids` (B, 6), or nothing where the UNet takes no sizes.
        """
        if not self.sizes_and_pooled:
            return {}
        return {"time_ids": torch.cat([original_sizes, crop_top_lefts, target_sizes], dim=1).float()}

    def predict(
        self,
        unet: torch.nn.Module,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The UNet's output (B, C, h, w) for noisy latents (B, C, h, w) at timesteps (B,); no guidance."""
        added = {name: value for name, value in conditioning.items() if name != "encoder_hidden_states"}
        hidden = conditioning["encoder_hidden_states"]
        noisy_latents = noisy_latents.to(hidden.dtype)  # the passes' precision, where no autocast sees to it
        return unet(noisy_latents, timesteps, hidden, added_cond_kwargs=added or None, return_dict=False)[0]


SD15 = Backbone(
    name="stable-diffusion",
    pipeline_class="StableDiffusionPipeline",
    text_encoders=("text_encoder",),
    hidden_state=-1,
    sizes_and_pooled=False,
    resolution=512,
    max_train_steps=120,
    paper_hours=1.9,
)

SDXL = Backbone(
    name="stable-diffusion-xl",
    pipeline_class="StableDiffusionXLPipeline",
    text_encoders=("text_encoder", "text_encoder_2"),
    hidden_state=-2,
    sizes_and_pooled=True,
    resolution=1024,
    max_train_steps=200,
    paper_hours=4.0,
)

BACKBONES = {"sd15": SD15, "sdxl": SDXL}


def _pipeline_class_name(name: str, path: str, where: dict[str, str | None]) -> str:
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
    for prefix, backbone in (("conditioner.embedders.1.", SDXL), ("cond_stage_model.transformer.", SD15)):
        if any(name.startswith(prefix) for name in names):
            return backbone.pipeline_class
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
