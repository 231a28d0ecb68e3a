# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the tiny world prefers: scenes with what they show as tensors, and which of them contradict which caption.

Everything is known from drawing the scenes; pictures are never read back. Only captions of the training split occur.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from diffusers_craft.tiny.world import BACKGROUNDS, COLORS, COUNTS, IMAGE_SIZE, RELATIONS, SHAPES, Caption, Scene

from .pictures import degrade, is_held_out, mistake, render, sample_caption, sample_scene, write_caption


KINDS = [(shape, color) for shape in SHAPES for color in COLORS]  # 30 kinds of objects
MAX_OBJECTS = 4
OBJECT_FEATURES = len(KINDS) + 3  # one-hot kind, x, y and radius in units of the picture
PATCH = 16  # pixels; side of the patches of the vision towers, about the size of an object, so that they learn quickly
DIRECTIONS = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


@dataclass
class SceneTensors:
    """N scenes. `objects` (N, 4, 33), padded with zeros; `background` (N, 3) one-hot."""

    objects: torch.Tensor
    background: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "SceneTensors":
        return SceneTensors(self.objects[rows], self.background[rows])

    @property
    def kinds(self) -> torch.Tensor:
        """How many objects of each kind there are: (N, 30)."""
        return self.objects[..., : len(KINDS)].sum(1)

    @property
    def places(self) -> torch.Tensor:
        """Sum of the centres of the objects of each kind: (N, 30, 2)."""
        return torch.einsum("nok,nod->nkd", self.objects[..., : len(KINDS)], self.objects[..., len(KINDS) : -1])


@dataclass
class CaptionTensors:
    """M captions. `fits` (M, 2, 30): kinds each group allows; `counts` (M, 2); `backgrounds` (M, 3); `relation` (M, 2)."""

    fits: torch.Tensor
    counts: torch.Tensor
    backgrounds: torch.Tensor
    relation: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "CaptionTensors":
        return CaptionTensors(self.fits[rows], self.counts[rows], self.backgrounds[rows], self.relation[rows])


def scene_tensors(scenes: list[Scene]) -> SceneTensors:
    objects = torch.zeros(len(scenes), MAX_OBJECTS, OBJECT_FEATURES)
    background = torch.zeros(len(scenes), len(BACKGROUNDS))
    for i, scene in enumerate(scenes):
        background[i, list(BACKGROUNDS).index(scene.background)] = 1
        for j, o in enumerate(scene.objects):
            objects[i, j, KINDS.index((o.shape, o.color))] = 1
            objects[i, j, len(KINDS) :] = torch.tensor([o.x, o.y, o.radius]) / IMAGE_SIZE
    return SceneTensors(objects, background)


def caption_tensors(captions: list[Caption]) -> CaptionTensors:
    fits = torch.zeros(len(captions), 2, len(KINDS))
    counts = torch.zeros(len(captions), 2)
    backgrounds = torch.ones(len(captions), len(BACKGROUNDS))
    relation = torch.zeros(len(captions), 2)
    for i, caption in enumerate(captions):
        for g, group in enumerate(caption.groups):
            fits[i, g] = torch.tensor([float(s == group.shape and group.color in (None, c)) for s, c in KINDS])
            counts[i, g] = group.count
        if caption.background:
            backgrounds[i] = torch.tensor([float(name == caption.background) for name in BACKGROUNDS])
        if caption.relation:
            relation[i] = torch.tensor(DIRECTIONS[caption.relation])
    return CaptionTensors(fits, counts, backgrounds, relation)


def shows(captions: CaptionTensors, scenes: SceneTensors) -> torch.Tensor:
    """Whether scene n shows caption m: (M, N) bool.

    A relation counts as shown when the offset points closer to its axis than to the other one.
    """
    found = torch.einsum("mgk,nk->mng", captions.fits, scenes.kinds)
    shown = (found == captions.counts[:, None]).all(-1)
    shown &= captions.counts.sum(1)[:, None] == scenes.kinds.sum(1)
    shown &= captions.backgrounds @ scenes.background.T > 0
    places = torch.einsum("mgk,nkd->mngd", captions.fits, scenes.places)
    offset = places[:, :, 0] - places[:, :, 1]  # (M, N, 2); meaningful where both groups are one object
    along = torch.einsum("mnd,md->mn", offset, captions.relation)
    across = torch.einsum("mnd,md->mn", offset.abs(), captions.relation.flip(1).abs())
    return shown & ((along > across) | (captions.relation == 0).all(1)[:, None])


def alter(caption: Caption, rng: np.random.Generator) -> Caption:
    """A caption of the training split that differs in one word and that no picture of `caption` shows."""
    while True:
        groups, relation, background = list(caption.groups), caption.relation, caption.background
        g = int(rng.integers(len(groups)))
        kind = rng.choice(["shape", "color", "count", "relation", "background", "swap"])
        if kind == "shape":
            free = [s for s in SHAPES if s not in [group.shape for group in groups]]
            groups[g] = replace(groups[g], shape=str(rng.choice(free)))
        elif kind == "color" and groups[g].color:
            groups[g] = replace(groups[g], color=str(rng.choice([c for c in COLORS if c != groups[g].color])))
        elif kind == "count" and caption.task == "counting":
            groups[g] = replace(groups[g], count=int(rng.choice([n for n in COUNTS.values() if n != groups[g].count])))
        elif kind == "relation" and relation:
            relation = str(rng.choice([r for r in RELATIONS if r != relation]))
        elif kind == "background" and background:
            background = str(rng.choice([b for b in BACKGROUNDS if b != background]))
        elif kind == "swap" and len(groups) == 2 and (relation or groups[0].color != groups[1].color):
            groups = [replace(groups[0], shape=groups[1].shape), replace(groups[1], shape=groups[0].shape)]
        altered = Caption(caption.task, tuple(groups), relation, background)
        if altered != caption and not is_held_out(altered):
            return altered


def contradiction(caption: Caption, scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene that is close to `scene`, which shows the caption, but does not show it."""
    meaning = caption_tensors([caption])
    if rng.random() < 0.7:
        wrong = mistake(scene, rng)
        if not shows(meaning, scene_tensors([wrong])):
            return wrong
    while True:
        wrong = sample_scene(alter(caption, rng), rng)
        if not shows(meaning, scene_tensors([wrong])):
            return wrong


@dataclass
class Pool:
    """N captions with a scene that shows each, one that does not, and a caption that the first does not show.

    `exact_pixels` and `wrong_pixels` are the clean pictures, (N, 64, 64, 3) uint8.
    """

    captions: list[str]
    altered: list[str]
    meanings: CaptionTensors
    altered_meanings: CaptionTensors
    exact: SceneTensors
    wrong: SceneTensors
    exact_pixels: np.ndarray
    wrong_pixels: np.ndarray


def build_pool(n: int, seed: int) -> Pool:
    """Draws `n` rows; captions of the training split only."""
    rng = np.random.default_rng(seed)
    captions, altered, exact, wrong = [], [], [], []
    while len(captions) < n:
        caption = sample_caption(rng)
        if is_held_out(caption):
            continue
        scene = sample_scene(caption, rng)
        captions.append(caption)
        altered.append(alter(caption, rng))
        exact.append(scene)
        wrong.append(contradiction(caption, scene, rng))
    return Pool(
        [write_caption(c) for c in captions],
        [write_caption(c) for c in altered],
        caption_tensors(captions),
        caption_tensors(altered),
        scene_tensors(exact),
        scene_tensors(wrong),
        np.stack([np.asarray(render(scene)) for scene in exact]),
        np.stack([np.asarray(render(scene)) for scene in wrong]),
    )


def spoil(pixels: np.ndarray, severity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blends each (B, 64, 64, 3) uint8 picture with its flawed look; severity (B,) in [0, 1]."""
    out = pixels.copy()
    for i in np.flatnonzero(severity > 0):
        image = Image.fromarray(pixels[i])
        out[i] = np.asarray(Image.blend(image, degrade(image, rng), float(severity[i])))
    return out


def malform(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Bends (B, 3, 64, 64) pictures by smooth random offsets of several pixels, so that shapes lose their form."""
    coarse = torch.randn(len(pixels), 2, 6, 6, generator=generator) * 3.2 * 2 / IMAGE_SIZE
    offsets = F.interpolate(coarse, size=IMAGE_SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid + offsets, padding_mode="border", align_corners=False)


def patch_kinds(scenes: SceneTensors) -> torch.Tensor:
    """What stands at the centre of each patch, 0 for the ground or 1 + index of the kind: (N, 16) int64."""
    side = IMAGE_SIZE // PATCH
    centers = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), -1).view(1, 1, -1, 2)
    places, radii = scenes.objects[..., None, -3:-1], scenes.objects[..., -1:]  # (N, 4, 1, 2), (N, 4, 1)
    inside = (places - grid).norm(dim=-1) < 0.8 * radii  # (N, 4, 16)
    label = (scenes.objects[..., : len(KINDS)].argmax(-1) + 1)[..., None]
    return (inside * label).amax(1)
