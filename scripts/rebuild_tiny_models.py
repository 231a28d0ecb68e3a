# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Trains the embedded pipelines `tiny-sd15` and `tiny-sdxl` from nothing: VAE, then text encoder and UNet together.

    python scripts/rebuild_tiny_models.py vae sd15 sdxl install [--steps N] [--work_dir outputs/tiny]

Each part takes the better part of an hour on one CPU core. `tiny/rebuild_rewards.py` does the same for the reward models.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel, compute_snr
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusers_craft.tiny import MODELS, WEIGHTS
from diffusers_craft.tiny.lexicon import MAX_TOKENS, build_tokenizer
from diffusers_craft.tiny.world import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    RELATIONS,
    SHAPES,
    Caption,
    degrade,
    enrich,
    is_held_out,
    parse_caption,
    render,
    sample_caption,
    sample_picture,
    sample_scene,
)


P_RICH = 0.45  # share of training captions with words of quality; their pictures are clean
P_FLAWED = 0.5  # share of flawed pictures under plain captions
P_UNCONDITIONAL = 0.1
BATCH_SIZE = 48
TEXT_STEPS = 150
LATENT_CHANNELS = 4
TIME_IDS = [IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]


def sample_training_caption(rng: np.random.Generator) -> tuple[Caption, bool]:
    """A caption of the training split, and whether it comes with words of quality."""
    caption = sample_caption(rng)
    while is_held_out(caption):
        caption = sample_caption(rng)
    return caption, rng.random() < P_RICH


def sample_pair(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A caption of the training split and its (64, 64, 3) uint8 picture, in the mix that the world consists of."""
    caption, rich = sample_training_caption(rng)
    picture = sample_picture(caption, rng, flawed=not rich and rng.random() < P_FLAWED)
    return enrich(str(caption), rng) if rich else str(caption), np.asarray(picture)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def learning_rate(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up over 2 % of the steps, constant, then linear to zero over the last 40 %."""
    warmup = max(1, steps // 50)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * min(1.0, (steps - step) / (0.4 * steps))
    )


def scattered_picture(rng: np.random.Generator) -> np.ndarray:
    """A (64, 64, 3) uint8 picture of objects of various sizes anywhere: a VAE learns colours and shapes from these."""
    caption, _ = sample_training_caption(rng)
    scene = sample_scene(caption, rng)
    while True:
        radii = rng.uniform(8.0, 10.5, len(scene.objects))
        centers = rng.uniform(radii[:, None] + 2, IMAGE_SIZE - radii[:, None] - 2, (len(radii), 2))
        gaps = np.abs(centers[:, None] - centers[None]).max(-1) - radii[:, None] - radii[None]
        if (gaps[~np.eye(len(radii), dtype=bool)] >= 3).all():
            break
    for o, (x, y), radius in zip(scene.objects, centers, radii):
        o.x, o.y, o.radius = float(x), float(y), float(radius)
    picture = render(scene)
    return np.asarray(degrade(picture, rng) if rng.random() < 0.3 else picture)


def reconstruction_loss(reconstruction: torch.Tensor, x: torch.Tensor, squared: float) -> torch.Tensor:
    """Absolute plus `squared` times squared error; foreground counts six-fold, else colours and shapes come last."""
    ground = torch.cat([x[:, :, 0], x[:, :, -1]], -1).median(-1).values[:, :, None, None]
    weight = 1 + 5 * ((x - ground).norm(dim=1, keepdim=True) > 0.4).float()
    error = reconstruction.float() - x
    return ((error.abs() + squared * error**2) * weight).mean()


def train_vae(work_dir: Path, steps: int, seed: int) -> None:
    """A small KL autoencoder, 64 px to 8 x 8 latents: three quarters of the steps on scattered objects, then the grid."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 64, 96],
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )
    rng = np.random.default_rng(seed)
    pictures = to_tensor(np.stack([scattered_picture(rng) for _ in range(12000)]))
    fit_vae(vae, pictures, steps * 3 // 4, squared=0.0)
    pictures = to_tensor(np.stack([sample_pair(rng)[1] for _ in range(6000)]))
    fit_vae(vae, pictures, steps // 4, squared=2.0)
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures[:2048].split(256)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(work_dir / "vae")


def fit_vae(vae: AutoencoderKL, pictures: torch.Tensor, steps: int, squared: float) -> None:
    """Trains on pictures (n, 3, 64, 64) in [-1, 1] with a learning rate that ends at zero."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = learning_rate(optimizer, steps)
    start = time.time()
    for step in range(steps):
        x = pictures[torch.randint(len(pictures), (16,))]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            reconstruction = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(reconstruction, x, squared) + 1e-5 * posterior.kl().float().mean() / 256
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"vae step {step} loss {loss.item():.4f} seconds {time.time() - start:.0f}", flush=True)


def text_config(hidden: int, layers: int, projection: int, tokenizer) -> CLIPTextConfig:
    end = tokenizer.eos_token_id
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=projection,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )


def describe(caption: str) -> list[int]:
    """What a caption says as class numbers; see `NUM_CLASSES`."""
    meaning = parse_caption(caption)
    first, second = meaning.groups[0], meaning.groups[-1] if len(meaning.groups) == 2 else None
    colors, backgrounds = [None, *COLORS], [None, *BACKGROUNDS]
    return [
        first.count - 1,
        SHAPES.index(first.shape),
        colors.index(first.color),
        SHAPES.index(second.shape) + 1 if second else 0,
        colors.index(second.color) if second else 0,
        RELATIONS.index(meaning.relation) + 1 if meaning.relation else 0,
        backgrounds.index(meaning.background),
        int("," in caption),
    ]


NUM_CLASSES = [4, len(SHAPES), len(COLORS) + 1, len(SHAPES) + 1, len(COLORS) + 1, len(RELATIONS) + 1, 4, 2]


def pretrain_text_encoder(encoder: torch.nn.Module, tokenizer, hidden_state: int, steps: int, seed: int) -> None:
    """Teaches a text encoder what captions say, as CLIP's was taught before Stable Diffusion: far faster than jointly.

    The states after the end of the text answer for the whole caption, and so does the pooled state if there is one.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 2])
    head = torch.nn.Linear(encoder.config.hidden_size, sum(NUM_CLASSES))
    pooled_head = torch.nn.Linear(encoder.config.projection_dim, sum(NUM_CLASSES))
    parameters = [*encoder.parameters(), *head.parameters(), *pooled_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = learning_rate(optimizer, steps)
    for step in range(steps):
        pairs = [sample_training_caption(rng) for _ in range(128)]
        captions = [enrich(str(caption), rng) if rich else str(caption) for caption, rich in pairs]
        labels = torch.tensor([describe(caption) for caption in captions])
        ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
        ended = ids.eq(tokenizer.eos_token_id)  # the end and the padding, which repeats it
        output = encoder(ids, output_hidden_states=True)
        states = output.last_hidden_state if hidden_state == -1 else output.hidden_states[hidden_state]
        logits = head(states[ended]).split(NUM_CLASSES, -1)
        rows = torch.arange(len(ids))[:, None].expand_as(ids)[ended]
        losses = [F.cross_entropy(x, labels[rows, i]) for i, x in enumerate(logits)]
        if hasattr(output, "text_embeds"):
            pooled = pooled_head(output.text_embeds).split(NUM_CLASSES, -1)
            losses += [F.cross_entropy(x, labels[:, i]) for i, x in enumerate(pooled)]
        optimizer.zero_grad()
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            right = torch.stack([x.argmax(-1) == labels[rows, i] for i, x in enumerate(logits)]).all(0)
            print(f"text step {step} captions read whole {right.float().mean():.3f}", flush=True)


def new_pipeline(kind: str, vae: AutoencoderKL, work_dir: Path):
    """An untrained pipeline of `kind` sd15 or sdxl around a trained VAE."""
    tokenizer = build_tokenizer(work_dir / "tokenizer")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip
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
    return StableDiffusionXLPipeline(
        vae, first, second, tokenizer, tokenizer, unet, scheduler, add_watermarker=False
    )  # fmt: skip


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


def predict(
    pipeline, noisy: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, torch.Tensor]
) -> torch.Tensor:
    """(B, C, h, w) noise that the UNet sees."""
    added = None
    if "text_embeds" in condition:
        time_ids = torch.tensor([TIME_IDS], dtype=torch.float32).repeat(len(noisy), 1)
        added = {"text_embeds": condition["text_embeds"], "time_ids": time_ids}
    return pipeline.unet(noisy, timesteps, condition["encoder_hidden_states"], added_cond_kwargs=added).sample


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


def loss_weight(snr: torch.Tensor) -> torch.Tensor:
    """(B,) weights of the noise-prediction error: as of a velocity, at most 4 per squared error of the picture.

    Captions matter where noise hides the picture, and there the plain loss is small: it hardly learns to read.
    """
    return ((snr + 1).clamp(max=4) / snr).clamp(max=20)


def train_pipeline(kind: str, work_dir: Path, cycles: list[int], seed: int, n_pictures: int) -> None:
    """Teaches the text encoder(s) to read, then the UNet to draw, in cycles that start from averaged weights."""
    vae = AutoencoderKL.from_pretrained(work_dir / "vae").eval()
    captions, latents = encode_pictures(vae, n_pictures, seed)
    torch.manual_seed(seed)
    pipeline = new_pipeline(kind, vae, work_dir)
    for encoder in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if encoder is not None:
            pretrain_text_encoder(encoder, pipeline.tokenizer, -1 if kind == "sd15" else -2, TEXT_STEPS, seed)
            encoder.eval().requires_grad_(False)
    distinct = ["", *dict.fromkeys(captions)]
    row_of = {caption: row for row, caption in enumerate(distinct)}
    conditions = conditioning(pipeline, distinct)
    caption_rows = torch.tensor([row_of[caption] for caption in captions])

    print(f"{kind}: UNet of {sum(p.numel() for p in pipeline.unet.parameters()) / 1e6:.2f} M parameters", flush=True)
    for cycle, steps in enumerate(cycles):
        torch.manual_seed(seed + cycle)
        fit_unet(pipeline, latents, conditions, caption_rows, steps, 1e-3 if cycle == 0 else 8e-4)
        pipeline.save_pretrained(work_dir / f"tiny-{kind}")


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


def install(work_dir: Path) -> None:
    """Copies the trained pipelines into the package as fp16 safetensors; they share one file of VAE weights."""
    for folder in sorted(work_dir.glob("tiny-*")):
        xl = folder.name == "tiny-sdxl"
        pipeline = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline).from_pretrained(
            folder, **({} if xl else {"safety_checker": None})
        )
        pipeline.to(dtype=torch.float16).save_pretrained(WEIGHTS / folder.name)
        for config in (WEIGHTS / folder.name).glob("text_encoder*/config.json"):
            # Else transformers 5 computes in half precision where diffusers computes in single precision.
            config.write_text(config.read_text().replace('"float16"', '"float32"'))
    first, second = (Path(name) / "vae" / "diffusion_pytorch_model.safetensors" for name in MODELS)
    if (WEIGHTS / first).is_file() and (WEIGHTS / second).is_file():
        (WEIGHTS / second).unlink()
        (WEIGHTS / second).symlink_to(Path("../..") / first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=["vae", "sd15", "sdxl", "install"])
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/tiny"))
    parser.add_argument("--vae_steps", type=int, default=5300)
    parser.add_argument("--steps", type=int, nargs="+", default=[3000, 2200], help="Of the UNet, a cycle each.")
    parser.add_argument("--num_pictures", type=int, default=16000)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    for part in args.parts:
        if part == "vae":
            train_vae(args.work_dir, args.vae_steps, args.seed)
        elif part == "install":
            install(args.work_dir)
        else:
            train_pipeline(part, args.work_dir, args.steps, args.seed, args.num_pictures)


if __name__ == "__main__":
    main()
