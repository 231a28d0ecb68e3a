# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Our chain of guided outputs and moves ends at the latents of diffusers' own pipelines, on random weights."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffusers_craft import SD15, SDXL, load_pipeline
from diffusers_craft.objectives.chains import guided, sample
from diffusers_craft.scripts import ModelSource, NoisePath


PROMPTS = ["a red circle", "two stars"]
SCALE, STEPS, SIDE = 3.0, 8, 8  # SIDE in latents
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _noise(channels: int = 4) -> torch.Tensor:
    return torch.randn(len(PROMPTS), channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def _drawn(pipeline, **options) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    options |= {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    return pipeline(PROMPTS, latents=_noise(), **options).images


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("epsilon", {}),
        ("epsilon", {"timestep_spacing": "trailing"}),
        ("v_prediction", {}),
        ("v_prediction", ZERO_SNR),
        ("sample", ZERO_SNR),
    ],
)
@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=lambda backbone: backbone.name)
def test_ddim_chains(backbone, kind, options, random_sd15, random_sdxl):
    """With `trailing` spacing and zero terminal SNR the first move starts at pure noise."""
    folder = random_sd15 if backbone is SD15 else random_sdxl
    pipeline, components = load_pipeline(str(folder), device="cpu"), backbone.load(ModelSource(str(folder)))
    # Sampling in the pipeline clips by default where the config does not say no.
    options = {"clip_sample": False} | options
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind, **options)
    pipeline.scheduler, path = scheduler, NoisePath.from_scheduler(scheduler)
    expected = _drawn(pipeline, height=8 * SIDE, width=8 * SIDE)

    sizes = torch.full((len(PROMPTS), 2), 8 * SIDE)
    conditioning = backbone.encode_prompts(components, PROMPTS)
    conditioning |= backbone.size_conditioning(sizes, torch.zeros_like(sizes), sizes)
    empty = backbone.encode_empty_prompt(components)
    empty = {name: empty[name].expand_as(value) if name in empty else value for name, value in conditioning.items()}
    times = scheduler.timesteps

    @torch.no_grad()
    def predict(latents, step):
        def at(latents, told, conditioning):
            return backbone.predict(pipeline.unet, latents, path.labels[told], conditioning)

        return guided(at, latents, times[step].expand(len(latents)), conditioning, empty, SCALE)

    found = sample(_noise(), path.levels[times].tolist(), path, predict)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert expected.std() > 0.1


@pytest.fixture(scope="module")
def random_sd3(make_tokenizer, tmp_path_factory) -> StableDiffusion3Pipeline:
    """A random-weight `StableDiffusion3Pipeline` without T5, which it may do without."""
    torch.manual_seed(0)
    tokenizer, width = make_tokenizer(tmp_path_factory.mktemp("tokenizer"), "!", 16), 16
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": len(tokenizer) - 1}
    sizes |= {"hidden_size": width, "projection_dim": width, "intermediate_size": width}
    text = CLIPTextConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIDE,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * width,
            caption_projection_dim=16,
            pooled_projection_dim=2 * width,
            pos_embed_max_size=SIDE,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(text).eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_chains(random_sd3, shift):
    pipeline = random_sd3
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    expected = _drawn(pipeline, height=SIDE, width=SIDE)
    path = NoisePath.from_scheduler(pipeline.scheduler)
    names = ("encoder_hidden_states", "negative", "pooled_projections", "negative_pooled")
    encoded = dict(zip(names, pipeline.encode_prompt(PROMPTS, PROMPTS, PROMPTS)))
    conditioning = {name: encoded[name] for name in names[::2]}
    empty = {"encoder_hidden_states": encoded["negative"], "pooled_projections": encoded["negative_pooled"]}
    levels = pipeline.scheduler.sigmas[:-1].tolist()

    @torch.no_grad()
    def predict(latents, step):
        def at(latents, told, conditioning):
            return pipeline.transformer(latents, timestep=told, **conditioning, return_dict=False)[0]

        return guided(at, latents, torch.full((len(latents),), 1000 * levels[step]), conditioning, empty, SCALE)

    found = sample(_noise(), levels, path, predict)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (expected - _noise()).std() > 0.1
