# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The only place that knows how Stable Diffusion 1.5 and SDXL differ: one row of data each, and no branches elsewhere.

Conditioning travels as a dict of tensors with one row per image; `encoder_hidden_states` (B, tokens, width) is always
there, all other entries go to the UNet's `added_cond_kwargs`.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

from ..errors import UserError
from .loading import load_pipeline, load_vae, pipeline_class_name
from .noise import NoisePath


class ModelSource(NamedTuple):
    """Where a model comes from: the arguments of diffusers' `from_pretrained`."""

    name: str  # Hub id, folder, single .safetensors file, or the name of an embedded model
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    vae: str | None = None  # another VAE than the pipeline's own
    config: str | None = None  # for a single file: pipeline folder or Hub id with configuration and tokenizers

    @classmethod
    def from_args(cls, args: Namespace) -> "ModelSource":
        """What the flags of `add_training_arguments` say; a family without a flag for the VAE takes the model's own."""
        vae = getattr(args, "pretrained_vae_model_name_or_path", None)
        where = (args.revision, args.variant, args.cache_dir)
        return cls(args.pretrained_model_name_or_path, *where, vae=vae, config=args.single_file_config)


@dataclass
class Components:
    """The parts of a pipeline that training needs; VAE and text encoders go once the data is encoded."""

    unet: UNet2DConditionModel
    path: NoisePath
    force_zeros_for_empty_prompt: bool
    vae: AutoencoderKL | None = None
    text_encoders: list[torch.nn.Module] = field(default_factory=list)
    tokenizers: list[Any] = field(default_factory=list)

    def free_encoders(self) -> None:
        """Drops VAE and text encoders: latents and embeddings are cached."""
        self.vae, self.text_encoders = None, []


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
        inversion_beta (`float`): beta of preferences on inverted latents (arXiv 2506.02698, 2503.18454).
    """

    name: str
    pipeline_class: str
    text_encoders: tuple[str, ...]
    hidden_state: int
    sizes_and_pooled: bool
    resolution: int
    max_train_steps: int
    paper_hours: float
    inversion_beta: float

    def load(
        self, source: ModelSource, device: str | torch.device = "cpu", prediction_type: str | None = None
    ) -> Components:
        """The parts that training needs, in float32, with the noise path of the pipeline's scheduler.

        VAE and text encoders go to `device`. The UNet stays on the CPU: a small card holds it only once the encoders are
        gone, and perhaps not in float32.
        """
        pipeline = self.pipeline(source)
        return Components(
            unet=pipeline.unet,
            path=NoisePath.from_scheduler(pipeline.scheduler, prediction_type),
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
            UserError: if `source` is a pipeline of another class.
        """
        found = pipeline_class_name(source.name, source.revision, source.cache_dir)
        if found != self.pipeline_class:
            expected = f"expected a {self.pipeline_class} for this script"
            raise UserError(f"--pretrained_model_name_or_path: {expected}, found a {found} in {source.name!r}")
        components = {} if unet is None else {"unet": unet}
        if source.vae is not None:
            components["vae"] = load_vae(source.vae, source.cache_dir)
        where = {"revision": source.revision, "variant": source.variant, "cache_dir": source.cache_dir}
        return load_pipeline(source.name, device=device, config=source.config, **where, **components)

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
        """Text conditioning, one row per prompt, as the pipeline itself computes it.

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
        """What the UNet says of noisy latents, without guidance; what it means is `Components.path`'s to say.

        Args:
            unet (`torch.nn.Module`): the trained one or its reference, bare or prepared for training.
            noisy_latents (`torch.Tensor`): (B, C, h, w) mixtures of the path, as they are.
            timesteps (`torch.Tensor`): (B,) labels of the path.
            conditioning (`dict[str, torch.Tensor]`): name -> (B, ...) of `encode_prompts` and `size_conditioning`.

        Returns:
            `torch.Tensor`: (B, C, h, w) in the precision of the passes.
        """
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
    inversion_beta=2000.0,
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
    inversion_beta=5000.0,
)

BACKBONES = {"sd15": SD15, "sdxl": SDXL}
