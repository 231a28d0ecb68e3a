# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The UNets of the embedded pipelines."""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel, compute_snr
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from diffusers_craft.tiny.world import IMAGE_SIZE

from .data import sample_pair, to_tensor
from .lexicon import build_tokenizer
from .schedule import learning_rate
from .text import pretrain_text_encoder, text_config
from .vae import LATENT_CHANNELS


P_UNCONDITIONAL = 0.1
BATCH_SIZE = 48
TEXT_STEPS = 150
PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
TIME_IDS = [IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]


def cycle_folder(work_dir: Path, kind: str, cycle: int) -> Path:
    """Where a pipeline of `kind` is kept after a cycle, counted from 1; cycle 0 has read, and not drawn yet."""
    return work_dir / f"tiny-{kind}" / f"cycle-{cycle}"


def train_pipeline(kind: str, work_dir: Path, cycles: list[int], seed: int, num_pictures: int) -> None:
    """Teaches the text encoder(s) to read, then the UNet to draw, in cycles that start from averaged weights.

    Args:
        kind (`str`): `"sd15"` or `"sdxl"`.
        work_dir (`Path`): holds the trained VAE and takes a pipeline for each cycle; finished cycles are kept.
        cycles (`list[int]`): optimizer steps of each cycle.
        seed (`int`): of weights, pictures and noise.
        num_pictures (`int`): pictures to train on.
    """
    first = cycle_folder(work_dir, kind, 0)
    if not (first / "model_index.json").exists():
        torch.manual_seed(seed)
        pipeline = new_pipeline(kind, AutoencoderKL.from_pretrained(work_dir / "vae"), work_dir)
        for encoder in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if encoder is not None:
                pretrain_text_encoder(encoder, pipeline.tokenizer, -1 if kind == "sd15" else -2, TEXT_STEPS, seed)
        pipeline.save_pretrained(first)
    done = max(n for n in range(len(cycles) + 1) if (cycle_folder(work_dir, kind, n) / "model_index.json").exists())
    if done == len(cycles):
        return
    pipeline = PIPELINES[kind].from_pretrained(cycle_folder(work_dir, kind, done), torch_dtype=torch.float32)
    captions, latents = encode_pictures(pipeline.vae, num_pictures, seed)
    distinct = ["", *dict.fromkeys(captions)]
    row_of = {caption: row for row, caption in enumerate(distinct)}
    conditions = conditioning(pipeline, distinct)
    caption_rows = torch.tensor([row_of[caption] for caption in captions])
    print(f"{kind}: UNet of {sum(p.numel() for p in pipeline.unet.parameters()) / 1e6:.2f} M parameters", flush=True)
    for cycle, steps in enumerate(cycles[done:], done + 1):
        torch.manual_seed(seed + cycle)
        fit_unet(pipeline, latents, conditions, caption_rows, steps, 1e-3 if cycle == 1 else 8e-4)
        pipeline.save_pretrained(cycle_folder(work_dir, kind, cycle))


def new_pipeline(kind: str, vae: AutoencoderKL, work_dir: Path):
    """An untrained pipeline of `kind` sd15 or sdxl around a trained VAE."""
    tokenizer = build_tokenizer(work_dir / "tokenizer")
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    shared = {
        "sample_size": IMAGE_SIZE // 8,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "attention_head_dim": 4,
    }
    if kind == "sd15":
        unet = UNet2DConditionModel(
            **shared,
            block_out_channels=[80, 112],
            down_block_types=["CrossAttnDownBlock2D"] * 2,
            up_block_types=["CrossAttnUpBlock2D"] * 2,
            cross_attention_dim=128,
        )
        encoder = CLIPTextModel(text_config(128, 3, 128, tokenizer))
        return StableDiffusionPipeline(
            vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
        )
    unet = UNet2DConditionModel(
        **shared,
        block_out_channels=[64, 80],
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        cross_attention_dim=64 + 64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + 64,
    )
    first = CLIPTextModel(text_config(64, 3, 64, tokenizer))
    second = CLIPTextModelWithProjection(text_config(64, 3, 64, tokenizer))
    return StableDiffusionXLPipeline(vae, first, second, tokenizer, tokenizer, unet, scheduler, add_watermarker=False)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, n: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """n captions and their scaled latents (n, 4, 8, 8)."""
    rng = np.random.default_rng(seed)
    captions, latents, chunk = [], [], []
    for i in range(n):
        caption, picture = sample_pair(rng)
        captions.append(caption)
        chunk.append(picture)
        if len(chunk) == 256 or i == n - 1:
            latents.append(vae.encode(to_tensor(np.stack(chunk))).latent_dist.mean * vae.config.scaling_factor)
            chunk = []
    return captions, torch.cat(latents)


@torch.no_grad()
def conditioning(pipeline, captions: list[str]) -> dict[str, torch.Tensor]:
    """Name -> (n, ...) conditioning of n captions."""
    parts = []
    for start in range(0, len(captions), 500):
        chunk = captions[start : start + 500]
        if isinstance(pipeline, StableDiffusionPipeline):
            parts.append({"encoder_hidden_states": pipeline.encode_prompt(chunk, "cpu", 1, False)[0]})
        else:
            embeds, _, pooled, _ = pipeline.encode_prompt(chunk, device="cpu", do_classifier_free_guidance=False)
            parts.append({"encoder_hidden_states": embeds, "text_embeds": pooled})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def fit_unet(
    pipeline,
    latents: torch.Tensor,
    conditions: dict[str, torch.Tensor],
    caption_rows: torch.Tensor,
    steps: int,
    lr: float,
) -> None:
    """One cycle of training on the denoising loss; leaves the averaged weights in the pipeline.

    Args:
        pipeline: holds the UNet and the noise schedule.
        latents (`torch.Tensor`): (n, 4, 8, 8) scaled latents.
        conditions (`dict[str, torch.Tensor]`): name -> (u, ...) conditioning of the distinct captions; row 0 is empty.
        caption_rows (`torch.Tensor`): (n,) row of each picture's caption.
        steps (`int`): optimizer steps.
        lr (`float`): highest learning rate.
    """
    unet = pipeline.unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = learning_rate(optimizer, steps)
    ema = EMAModel(unet.parameters(), decay=0.999)
    start, losses = time.time(), []
    for step in range(steps):
        rows = torch.randint(len(latents), (BATCH_SIZE,))
        x0, noise = latents[rows], torch.randn(BATCH_SIZE, *latents.shape[1:])
        dropped = torch.rand(BATCH_SIZE) < P_UNCONDITIONAL
        condition = {name: value[caption_rows[rows].masked_fill(dropped, 0)] for name, value in conditions.items()}
        timesteps = torch.randint(pipeline.scheduler.config.num_train_timesteps, (BATCH_SIZE,))
        prediction = predict(pipeline, pipeline.scheduler.add_noise(x0, noise, timesteps), timesteps, condition)
        weight = loss_weight(compute_snr(pipeline.scheduler, timesteps))
        loss = (F.mse_loss(prediction, noise, reduction="none").mean((1, 2, 3)) * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.step(unet.parameters())
        losses.append(loss.item())
        if step % 100 == 0 or step == steps - 1:
            print(f"unet step {step} loss {np.mean(losses[-100:]):.4f} seconds {time.time() - start:.0f}", flush=True)
    ema.copy_to(unet.parameters())
    unet.eval()


def predict(
    pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, torch.Tensor]
) -> torch.Tensor:
    """(B, C, h, w) noise that the UNet sees."""
    added = None
    if "text_embeds" in condition:
        time_ids = torch.tensor([TIME_IDS], dtype=torch.float32).repeat(len(noisy), 1)
        added = {"text_embeds": condition["text_embeds"], "time_ids": time_ids}
    return pipeline.unet(noisy, timesteps, condition["encoder_hidden_states"], added_cond_kwargs=added).sample


def loss_weight(snr: torch.Tensor) -> torch.Tensor:
    """(B,) weights of the noise-prediction error: as of a velocity, at most 4 per squared error of the picture.

    Captions matter where noise hides the picture, and there the plain loss is small: it hardly learns to read.
    """
    return ((snr + 1).clamp(max=4) / snr).clamp(max=20)
