# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Trains the embedded reward checkpoints from scratch: `python -m rebuild_tiny.rewards [names]` in `scripts/`.

Two steps per caption model, so that it takes minutes on one CPU core: a teacher that sees scenes as lists of objects
learns the preferences together with the text tower; the vision tower then learns to embed pictures where the teacher
puts their scenes. The aesthetic model learns the severity of flaws. The exact scorer and held-out captions play no part.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from diffusers_craft import load_reward
from diffusers_craft.rewards.preprocessing import normalize_pixels
from diffusers_craft.tiny import WEIGHTS
from diffusers_craft.tiny.world import Caption, Scene, parse_caption

from .data import enrich
from .pictures import degrade, mistake, render, sample_captions, sample_scene
from .preferences import KINDS, Pool, build_pool, caption_tensors, malform, patch_kinds, scene_tensors, shows, spoil
from .towers import EMBED, SCALE, OpenClipTowers, Recipe, Teacher, TransformersTowers, save_processor, vision_config


PLAIN_TOKENS = 20  # captions without words of quality fit; shorter sequences train faster
AESTHETIC_RANGE = (7.0, 4.0)  # score of a clean picture and of a thoroughly flawed one, LAION's usual span
POOL_ROWS, POOL_SEED = 30_000, 7

RECIPES = {
    "hps_v2.1": Recipe(seed=11, vision_width=96, vision_layers=4),
    "pickscore": Recipe(seed=22, vision_width=80, vision_layers=4, content_first=False),
    "aesthetic": Recipe(seed=33, vision_width=48, vision_layers=2, vision_steps=1000, patch=8),
}


def _schedule(parameters: Iterable[nn.Parameter], lr: float, steps: int) -> Iterator[torch.optim.Optimizer]:
    """Yields an AdamW optimizer once per step, with a linear warm-up and a cosine decay; steps it afterwards."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
    for step in range(steps):
        factor = min((step + 1) / 100, 0.5 + 0.5 * np.cos(np.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * factor
        optimizer.zero_grad()
        yield optimizer
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def _prefer(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """Bradley-Terry loss of preferring cosine `better` to `worse`, both (B,)."""
    return -F.logsigmoid(SCALE * (better - worse)).mean()


def _flaws(rng: np.random.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flaws of the (hardly flawed) good pictures and of the flawed ones: each (rows, 2)."""
    good = np.stack([rng.uniform(0, 0.15, rows) * (rng.random(rows) < 0.5), np.zeros(rows)], -1)
    bent = rng.random(rows) < 0.35
    bad = np.stack([np.where(bent, good[:, 0], rng.uniform(0.35, 1, rows)), bent], -1)
    return torch.tensor(good, dtype=torch.float32), torch.tensor(bad, dtype=torch.float32)


def train_teacher(
    towers: OpenClipTowers | TransformersTowers, teacher: Teacher, pool: Pool, recipe: Recipe, batch: int = 128
) -> None:
    """Learns scene and text embeddings from caption contrast with hard negatives and from preferences."""
    rng = np.random.default_rng([recipe.seed, 1])
    text_parameters = [p for n, p in towers.model.named_parameters() if "visual" not in n and "vision" not in n]
    start = time.time()
    for step, _ in enumerate(_schedule([*teacher.parameters(), *text_parameters], 2e-3, recipe.teacher_steps)):
        rows = torch.from_numpy(rng.choice(len(pool.captions), batch, replace=False))
        texts = [pool.captions[i] for i in rows] + [pool.altered[i] for i in rows]
        rich = step % 4 == 0
        ids = towers.tokenize([enrich(t, rng) for t in texts] if rich else texts)
        text = F.normalize(towers.text(ids if rich else ids[:, :PLAIN_TOKENS]), dim=-1)  # (2B, D)
        exact, wrong = pool.exact[rows], pool.wrong[rows]
        good, bad = _flaws(rng, batch)
        fine, mistaken, flawed = teacher(exact, good), teacher(wrong, good), teacher(exact, bad)
        cosine = text @ torch.cat([fine, mistaken, flawed]).T  # (2B, 3B)
        truth = torch.cat([shows(pool.meanings[rows], exact), shows(pool.altered_meanings[rows], exact)])
        truth_wrong = torch.cat([shows(pool.meanings[rows], wrong), shows(pool.altered_meanings[rows], wrong)])
        known = torch.cat([truth, truth_wrong, truth], 1)
        own = torch.arange(batch)
        known[own, own] = known[own, own + 2 * batch] = False  # the positive, and its flawed twin that must lose
        logits = SCALE * cosine.masked_fill(known, -1.0)
        loss = F.cross_entropy(logits[:batch], own) + F.cross_entropy(logits[:, :batch].T, own)
        right, slip, flaw = (cosine[own, own + k * batch] for k in range(3))
        loss = loss + _prefer(right, slip) + _prefer(right, flaw)
        loss = loss + (_prefer(flaw, slip) if recipe.content_first else 0.0)
        loss.backward()
        if step % 100 == 0 or step == recipe.teacher_steps - 1:
            wins = " ".join(f"{(a > b).float().mean():.3f}" for a, b in ((right, slip), (right, flaw), (flaw, slip)))
            print(f"teacher {step} loss {loss.item():.3f} wins {wins} {time.time() - start:.0f}s", flush=True)


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def _flawed_pixels(pixels: np.ndarray, flaws: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pictures (B, 3, 64, 64) in [0, 1] with the flaws (B, 2): bent shapes first, then the flawed look.

    All are moved by up to two pixels, so that no score depends on the exact place of the grid.
    """
    shifts = rng.integers(-2, 3, (len(pixels), 2))
    bent = _to_tensor(np.stack([np.roll(picture, shift, (0, 1)) for picture, shift in zip(pixels, shifts)]))
    chosen = flaws[:, 1] > 0
    if chosen.any():
        bent[chosen] = malform(bent[chosen], torch.Generator().manual_seed(int(rng.integers(2**62))))
    pixels = (bent.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return _to_tensor(spoil(pixels, flaws[:, 0].numpy(), rng))


def train_vision(
    towers: OpenClipTowers | TransformersTowers, teacher: Teacher, pool: Pool, recipe: Recipe, batch: int = 20
) -> None:
    """Teaches the vision tower the teacher's embeddings, the preferences, and what stands in each patch."""
    rng = np.random.default_rng([recipe.seed, 2])
    named = nn.Linear(recipe.vision_width, len(KINDS) + 1)
    weights = torch.ones(len(KINDS) + 1)
    weights[0] = 0.1  # most patches are ground
    vision_parameters = [p for n, p in towers.model.named_parameters() if "visual" in n or "vision" in n]
    texts = sorted(set(pool.captions))
    position = {text: i for i, text in enumerate(texts)}
    with torch.no_grad():
        ids = towers.tokenize(texts)[:, :PLAIN_TOKENS]
        embedded = torch.cat([F.normalize(towers.text(chunk), dim=-1) for chunk in ids.split(512)])
    start = time.time()
    for step, _ in enumerate(_schedule([*vision_parameters, *named.parameters()], 1e-3, recipe.vision_steps)):
        rows = torch.from_numpy(rng.choice(len(pool.captions), batch, replace=False))
        exact, wrong = pool.exact[rows], pool.wrong[rows]
        good, bad = _flaws(rng, batch)
        with torch.no_grad():
            target = torch.cat([teacher(exact, good), teacher(wrong, good), teacher(exact, bad)])
        fine, slip = pool.exact_pixels[rows], pool.wrong_pixels[rows]
        pixels = torch.cat([_flawed_pixels(*args, rng) for args in ((fine, good), (slip, good), (fine, bad))])
        embedding, tokens = towers.vision(normalize_pixels(pixels))
        embedding = F.normalize(embedding, dim=-1)
        labels = torch.cat([patch_kinds(exact), patch_kinds(wrong), patch_kinds(exact)])
        patches = F.cross_entropy(named(tokens).flatten(0, 1), labels.flatten(), weights)
        distance = (1 - (embedding * target).sum(-1)).mean()
        text = embedded[[position[pool.captions[i]] for i in rows]]
        right, slip, flaw = (text * embedding.view(3, batch, -1)).sum(-1)
        prefer = _prefer(right, slip) + _prefer(right, flaw)
        (4 * distance + prefer + patches).backward()
        if step % 100 == 0 or step == recipe.vision_steps - 1:
            print(
                f"vision {step} patches {patches.item():.3f} distance {distance.item():.3f} prefer {prefer.item():.3f} "
                f"{time.time() - start:.0f}s",
                flush=True,
            )


def rebuild_caption_model(name: str, folder: Path, pool: Pool) -> None:
    """Trains and writes `hps_v2.1` or `pickscore`."""
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    towers = (OpenClipTowers if name == "hps_v2.1" else TransformersTowers)(recipe, folder)
    teacher = Teacher()
    train_teacher(towers, teacher, pool, recipe)
    train_vision(towers, teacher, pool, recipe)
    towers.save(folder)


def rebuild_aesthetic(folder: Path, pool: Pool, batch: int = 32) -> None:
    """Trains and writes a vision tower with LAION's head (a stack of linear layers) on the severity of flaws."""
    recipe = RECIPES["aesthetic"]
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng([recipe.seed, 2])
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config(recipe)))
    head = nn.Sequential(nn.Linear(EMBED, 32), nn.Linear(32, 16), nn.Linear(16, 1))
    from_patches = nn.Linear(recipe.vision_width, 1)  # shows the patches what matters; the class token alone is slow
    for layer in head:  # the default would shrink what three layers pass on to almost nothing
        nn.init.orthogonal_(layer.weight, 1.6)
    start = time.time()
    parameters = [*model.parameters(), *head.parameters(), *from_patches.parameters()]
    for step, _ in enumerate(_schedule(parameters, 2e-3, recipe.vision_steps)):
        rows = rng.choice(len(pool.captions), batch, replace=False)
        pixels = (pool.exact_pixels if step % 2 else pool.wrong_pixels)[rows]  # the content plays no part
        good, bad = _flaws(rng, batch)
        images = torch.cat([_flawed_pixels(pixels, flaws, rng) for flaws in (good, bad)])
        severity = torch.cat([flaws[:, 0].maximum(0.6 * flaws[:, 1]) for flaws in (good, bad)])
        out = model(pixel_values=normalize_pixels(images))
        score = head(F.normalize(out.image_embeds, dim=-1))[:, 0]
        hint = from_patches(out.last_hidden_state[:, 1:].mean(1))[:, 0]
        loss = sum(
            F.smooth_l1_loss(found, -severity, beta=0.1) - F.logsigmoid(8 * (found[:batch] - found[batch:])).mean()
            for found in (score, hint)
        )
        loss.backward()
        if step % 100 == 0 or step == recipe.vision_steps - 1:
            wins = (score[:batch] > score[batch:]).float().mean().item()
            print(f"aesthetic {step} loss {loss.item():.4f} wins {wins:.3f} {time.time() - start:.0f}s", flush=True)
    best, worst = AESTHETIC_RANGE
    with torch.no_grad():  # from minus the severity to the span of LAION's scores
        head[-1].weight.mul_(best - worst)
        head[-1].bias.mul_(best - worst).add_(best)
    model.half().save_pretrained(folder)
    save_processor(folder)
    state = {f"layers.{key}": tensor.half().contiguous() for key, tensor in head.state_dict().items()}
    save_file(state, folder / "head.safetensors")


def _contradicting_mistake(caption: Caption, scene: Scene, rng: np.random.Generator) -> Scene:
    """The world's mistake of content, drawn again while the caption leaves open what it changed."""
    meaning = caption_tensors([caption])
    while shows(meaning, scene_tensors([wrong := mistake(scene, rng)])):
        pass
    return wrong


def evaluate_rewards(
    folder: Path = WEIGHTS, names: Iterable[str] = tuple(RECIPES), n: int = 600, seed: int = 5
) -> dict[str, dict[str, float]]:
    """Shares of unseen captions for which each reward prefers the right picture, of pictures never trained on.

    Args:
        folder (`Path`, *optional*, defaults to the package's own): holds a checkpoint folder for each reward.
        names (`Iterable[str]`, *optional*): rewards to judge; all by default.
        n (`int`, *optional*, defaults to 600): held-out captions.
        seed (`int`, *optional*, defaults to 5): draws captions and pictures.

    Returns:
        `dict`: per reward, the accuracy of the clean exact picture against a clean one with a mistake of content
        (`mistake`) and against itself flawed (`flawed`), of the flawed exact one against the clean mistaken one
        (`content_first`), and of the caption against another caption's picture (`other`).
    """
    rng = np.random.default_rng(seed)
    captions, pictures = [], {"exact": [], "mistake": [], "flawed": []}
    for text in sample_captions(n, seed, held_out=True):
        caption = parse_caption(text)
        scene = sample_scene(caption, rng)
        wrong = _contradicting_mistake(caption, scene, rng)
        captions.append(text)
        pictures["exact"].append(render(scene))
        pictures["mistake"].append(render(wrong))
        pictures["flawed"].append(degrade(render(scene), rng))
    pictures["other"] = pictures["exact"][1:] + pictures["exact"][:1]
    results = {}
    for name in names:
        reward = load_reward(name, checkpoint=str(folder / name), batch_size=64)
        scores = {kind: reward.score(captions, images) for kind, images in pictures.items()}
        results[name] = {
            kind: float((scores["exact"] > scores[kind]).mean()) for kind in ("mistake", "flawed", "other")
        }
        results[name]["content_first"] = float((scores["flawed"] > scores["mistake"]).mean())
    return results


def main() -> None:
    """Rebuilds the named rewards (default: all) and prints how well all that exist do on unseen captions."""
    parser = argparse.ArgumentParser(description="Trains the tiny reward checkpoints from scratch, on one CPU thread.")
    parser.add_argument("names", nargs="*", default=list(RECIPES), help="hps_v2.1, pickscore, aesthetic")
    parser.add_argument("--output_dir", type=Path, default=WEIGHTS, help="Holds a folder for each reward.")
    parser.add_argument("--evaluate_only", action="store_true", help="Judge the checkpoints that are there.")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RECIPES):
        parser.error(f"names: expected {', '.join(RECIPES)}, found {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    pool = None if args.evaluate_only else build_pool(POOL_ROWS, POOL_SEED)
    for name in args.names if pool else ():
        folder = args.output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        if name == "aesthetic":
            rebuild_aesthetic(folder, pool)
        else:
            rebuild_caption_model(name, folder, pool)
    print(json.dumps(evaluate_rewards(args.output_dir, args.names), indent=2))


if __name__ == "__main__":
    main()
