# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Stable Diffusion 1.5 and SDXL: one row of data each, and no branches elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .family import Components, Family


@dataclass(frozen=True)
class StableDiffusion(Family):
    """A family of latent-diffusion UNets with CLIP text encoders.

    `encoder_hidden_states` (B, tokens, width) is always among the conditioning, all other entries go to the UNet's
    `added_cond_kwargs`.
    """

    name: str
    pipeline_class: str
    text_encoders: tuple[str, ...]  # names of the pipeline's parts; tokenizers are named alike
    hidden_state: int  # which one conditions the UNet; -1 is the last one after the final layer norm
    sizes_and_pooled: bool  # SDXL's conditioning on sizes and a pooled text embedding (arXiv 2307.01952, section 2.2)
    resolution: int
    max_train_steps: int

    @torch.no_grad()
    def encode_prompts(self, components: Components, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`encoder_hidden_states` (B, tokens, width); with `sizes_and_pooled` also `text_embeds` (B, projection)."""
        hidden, pooled = [], None
        for name in self.text_encoders:
            text_encoder = getattr(components.pipeline, name)
            tokenizer = getattr(components.pipeline, name.replace("text_encoder", "tokenizer"))
            options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
            ids = tokenizer(list(prompts), **options, return_tensors="pt").input_ids
            output = text_encoder(ids.to(text_encoder.device), output_hidden_states=True)
            pooled = output[0]
            last = self.hidden_state == -1
            hidden.append(output.last_hidden_state if last else output.hidden_states[self.hidden_state])
        conditioning = {"encoder_hidden_states": torch.cat(hidden, dim=-1).float()}
        if self.sizes_and_pooled:
            conditioning["text_embeds"] = pooled.float()
        return conditioning

    def encode_empty_prompt(self, components: Components) -> dict[str, torch.Tensor]:
        """Zeros where the pipeline says so, as SDXL's does."""
        empty = super().encode_empty_prompt(components)
        if components.zeroes_empty_prompt:
            empty = {name: torch.zeros_like(value) for name, value in empty.items()}
        return empty

    def size_conditioning(
        self, original_sizes: torch.Tensor, crop_top_lefts: torch.Tensor, target_sizes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`time_ids` (B, 6), always float32, since bfloat16 turns 1023 into 1024; nothing where the UNet takes none."""
        if not self.sizes_and_pooled:
            return {}
        return {"time_ids": torch.cat([original_sizes, crop_top_lefts, target_sizes], dim=1).float()}

    def predict(
        self,
        denoiser: torch.nn.Module,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The UNet's output."""
        added = {name: value for name, value in conditioning.items() if name != "encoder_hidden_states"}
        hidden = conditioning["encoder_hidden_states"]
        noisy_latents = noisy_latents.to(hidden.dtype)  # the passes' precision, where no autocast sees to it
        return denoiser(noisy_latents, timesteps, hidden, added_cond_kwargs=added or None, return_dict=False)[0]


SD15 = StableDiffusion(
    name="stable-diffusion",
    pipeline_class="StableDiffusionPipeline",
    text_encoders=("text_encoder",),
    hidden_state=-1,
    sizes_and_pooled=False,
    resolution=512,
    max_train_steps=120,
)

SDXL = StableDiffusion(
    name="stable-diffusion-xl",
    pipeline_class="StableDiffusionXLPipeline",
    text_encoders=("text_encoder", "text_encoder_2"),
    hidden_state=-2,
    sizes_and_pooled=True,
    resolution=1024,
    max_train_steps=200,
)
