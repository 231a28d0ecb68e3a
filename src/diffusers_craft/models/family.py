# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A family of base models is one object: what of a pipeline is trained, how captions and times reach it, how it is saved.

Nothing else knows how families differ. Latents are plain (B, C, h, w) outside of `predict`; packing, position ids, signs
and scales of time stay inside. Conditioning travels as a dict of tensors with one row per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from ..errors import UserError
from .checks import check_trainable
from .latents import latent_factor
from .loading import check_single_file_config, load_pipeline, load_vae, pipeline_class_name
from .noise import NoisePath


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

    denoiser: torch.nn.Module  # UNet or transformer, on the CPU in float32
    path: NoisePath
    vae: AutoencoderKL | None
    pipeline: DiffusionPipeline | None  # for `Family.encode_prompts`

    def encoders(self) -> list[torch.nn.Module]:
        """The text encoders; none once they are dropped."""
        parts = self.pipeline.components.items() if self.pipeline is not None else ()
        return [part for name, part in parts if name.startswith("text_encoder") and part is not None]

    def tokens(self, prompts: Sequence[str]) -> dict[str, list[list[int]]]:
        """What every tokenizer makes of the prompts, by its name."""
        parts = self.pipeline.components.items()
        found = {name: part for name, part in parts if name.startswith("tokenizer") and part is not None}
        return {name: part(list(prompts), truncation=True).input_ids for name, part in found.items()}

    @property
    def zeroes_empty_prompt(self) -> bool:
        """Whether the pipeline takes zeros for the conditioning of the empty prompt."""
        return bool(self.pipeline.config.get("force_zeros_for_empty_prompt", False))

    @property
    def encoder_bytes(self) -> int:
        """Of VAE and text encoders as they are saved."""
        modules = [module for module in (self.vae, *self.encoders()) if module is not None]
        return sum(value.numel() * value.element_size() for module in modules for value in module.parameters())

    def free_encoders(self) -> None:
        """Drops VAE and text encoders: latents and embeddings are cached."""
        self.vae = self.pipeline = None


class Family:
    """Base of all families; a subclass gives the attributes, `encode_prompts` and `predict`.

    Attributes:
        name (`str`): short name for logs and model cards.
        pipeline_class (`str`): name of the diffusers pipeline class.
        component (`str`): the pipeline's part that is trained, `"unet"` or `"transformer"`.
        resolution (`int`): default side of the training images, pixels.
        max_train_steps (`int`): default number of optimizer steps, of the CRAFT recipe (arXiv 2603.18991) if it has one.
        lora_targets (`tuple[str, ...]`): ends of the names of layers that get adapters.
    """

    name: str
    pipeline_class: str
    component: str = "unet"
    resolution: int
    max_train_steps: int = 200
    lora_targets: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")  # every attention, as in diffusers' scripts

    def encode_prompts(self, components: Components, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Text conditioning, one row per prompt, as the pipeline itself computes it: name -> (B, ...) float32."""
        raise NotImplementedError

    def encode_empty_prompt(self, components: Components) -> dict[str, torch.Tensor]:
        """The conditioning of the unconditional branch, one row: what the pipeline itself guides away from."""
        return self.encode_prompts(components, [""])

    def size_conditioning(
        self, original_sizes: torch.Tensor, crop_top_lefts: torch.Tensor, target_sizes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Conditioning on sizes, for families that have any: name -> (B, ...) float32.

        All arguments are (B, 2) pixels: `original_sizes` (height, width) before resizing, `crop_top_lefts` (top, left) of
        the crop, `target_sizes` (height, width) of the crop.
        """
        return {}

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The output (B, C, h, w) of the denoiser (UNet or transformer) for noisy latents (B, C, h, w); no guidance.

        `timesteps` (B,) are `labels` of the noise path: timesteps, or 1000 sigma of a flow. `conditioning` is
        name -> (B, ...), from `encode_prompts` and `size_conditioning`.
        """
        raise NotImplementedError

    def native_resolution(self, components: Components) -> int:
        """Side in pixels of the images that a model was made for, as generation takes it, while its VAE is there."""
        size = components.denoiser.config.get("sample_size")
        return size * latent_factor(components.vae) if isinstance(size, int) else self.resolution

    def load(
        self, source: ModelSource, device: str | torch.device = "cpu", prediction_type: str | None = None
    ) -> Components:
        """The parts that training needs, in float32; `prediction_type` overrules the scheduler's.

        VAE and text encoders go to `device`. The denoiser stays on the CPU: a small card holds it only once the
        encoders are gone, and perhaps not in float32.
        """
        check_single_file_config(source.name, source.config)
        pipeline = self.pipeline(source)
        check_trainable(source.name, pipeline)
        path = NoisePath.from_scheduler(pipeline.scheduler, prediction_type)
        components = Components(getattr(pipeline, self.component), path, pipeline.vae, pipeline)
        for module in (components.vae, *components.encoders()):
            module.requires_grad_(False).to(device)
        return components

    def pipeline(
        self, source: ModelSource, denoiser: torch.nn.Module | None = None, device: str | torch.device = "cpu"
    ) -> DiffusionPipeline:
        """The whole pipeline in float32 for saving or validation, around a trained `denoiser` if one is given."""
        found = pipeline_class_name(source.name, source.revision, source.cache_dir)
        if found != self.pipeline_class:
            expected = f"expected a {self.pipeline_class} for this script"
            raise UserError(f"--pretrained_model_name_or_path: {expected}, found a {found} in {source.name!r}")
        components = {} if denoiser is None else {self.component: denoiser}
        if source.vae is not None:
            components["vae"] = load_vae(source.vae, source.cache_dir)
        where = {"revision": source.revision, "variant": source.variant, "cache_dir": source.cache_dir}
        return load_pipeline(source.name, device=device, config=source.config, **where, **components)
