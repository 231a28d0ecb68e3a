# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Captions of the tiny world at random, scenes that show them or make a mistake, and their pictures."""

import hashlib
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from diffusers_craft.tiny.world import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    IMAGE_SIZE,
    RELATIONS,
    SHAPES,
    TASKS,
    Caption,
    Group,
    Object,
    Scene,
    shape_polygon,
)


CELL = 16  # pixels; objects stand in the cells of a 4 x 4 grid, so that small models learn to draw them quickly
RADIUS = 7.0  # pixels
SUPERSAMPLING = 4


def sample_caption(rng: np.random.Generator, task: str | None = None) -> Caption:
    """Draws a caption of `task` (default: any of the six, uniformly); 30 % name a background."""
    task = task or TASKS[rng.integers(len(TASKS))]
    shape1, shape2 = rng.choice(SHAPES, 2, replace=False).tolist()
    color1, color2 = rng.choice(list(COLORS), 2, replace=False).tolist()
    background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.3 else None
    if task == "single_object":
        groups = (Group(1, shape1),)
    elif task == "colors":
        groups = (Group(1, shape1, color1),)
    elif task == "counting":
        groups = (Group(int(rng.integers(2, 5)), shape1, color1 if rng.random() < 0.5 else None),)
    elif task == "color_attr" or (task == "position" and rng.random() < 0.5):
        groups = (Group(1, shape1, color1), Group(1, shape2, color2))
    else:
        groups = (Group(1, shape1), Group(1, shape2))
    relation = str(rng.choice(RELATIONS)) if task == "position" else None
    return Caption(task, groups, relation, background)


def write_caption(caption: Caption) -> str:
    """The text of a caption, which `parse_caption` reads."""
    nouns = []
    for group in caption.groups:
        noun = f"{group.color} {group.shape}" if group.color else group.shape
        words = [word for word, count in COUNTS.items() if count == group.count]
        nouns.append(f"{words[0]} {noun}{'es' if group.shape == 'cross' else 's'}" if words else f"a {noun}")
    text = f" {caption.relation or 'and'} ".join(nouns)
    return f"{text} on a {caption.background} background" if caption.background else text


def is_held_out(caption: Caption) -> bool:
    """Whether a caption belongs to the held-out fifth of the world, decided by a hash of its text.

    No caption for which this is true was ever used to train a tiny model or reward.
    """
    return hashlib.sha256(write_caption(caption).encode()).digest()[0] % 5 == 0


def sample_captions(n: int, seed: int, held_out: bool) -> list[str]:
    """`n` distinct captions of one half of the split, the tasks in turn as far as their distinct captions reach."""
    rng = np.random.default_rng([seed, int(held_out)])
    captions: dict[str, None] = {}
    while len(captions) < n:
        for task in TASKS:
            for _ in range(100):  # simple tasks have few captions: give up on them once they are used up
                caption = sample_caption(rng, task)
                text = write_caption(caption)
                if is_held_out(caption) == held_out and text not in captions:
                    captions[text] = None
                    break
    return list(captions)[:n]


def sample_scene(caption: Caption, rng: np.random.Generator) -> Scene:
    """A scene that shows `caption` exactly; what the caption leaves open is drawn at random."""
    background = caption.background or str(rng.choice(list(BACKGROUNDS)))
    kinds = []
    for group in caption.groups:
        color = group.color or str(rng.choice(list(COLORS)))
        kinds += [(group.shape, color)] * group.count
    while True:
        cells = rng.integers(IMAGE_SIZE // CELL, size=(len(kinds), 2))  # (n, 2) column and row
        if _apart(cells) and (caption.relation is None or _related(cells, caption.relation)):
            break
    centers = ((cells + 0.5) * CELL).tolist()
    return Scene(background, [Object(s, c, x, y, RADIUS) for (s, c), (x, y) in zip(kinds, centers)])


def _apart(cells: np.ndarray) -> bool:
    """Whether no two of (n, 2) cells are the same or touch, not even at a corner."""
    distances = np.abs(cells[:, None] - cells[None]).max(-1) + 9 * np.eye(len(cells), dtype=int)
    return bool(distances.min() >= 2)


def _related(cells: np.ndarray, relation: str) -> bool:
    """Whether the first cell clearly stands in `relation` to the second (rows count downwards)."""
    dx, dy = cells[0] - cells[1]
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    return along > 0 and abs(across) < 0.6 * along


def mistake(scene: Scene, rng: np.random.Generator) -> Scene:
    """A copy of `scene` with one error of content: a wrong colour or shape, a missing or doubled object, a swap."""
    objects = [replace(o) for o in scene.objects]
    kind = rng.choice(["color", "shape", "number", "swap"])
    victim = objects[rng.integers(len(objects))]
    if kind == "swap" and len(objects) > 1 and objects[0].shape != objects[1].shape:
        objects[0].shape, objects[1].shape = objects[1].shape, objects[0].shape
    elif kind == "color":
        victim.color = str(rng.choice([c for c in COLORS if c != victim.color]))
    elif kind == "number" and len(objects) > 1:
        objects.remove(victim)
    else:
        victim.shape = str(rng.choice([s for s in SHAPES if s != victim.shape]))
    return Scene(scene.background, objects)


def render(scene: Scene) -> Image.Image:
    """Draws a scene cleanly: a 64 x 64 RGB image, antialiased."""
    s = SUPERSAMPLING
    image = Image.new("RGB", (IMAGE_SIZE * s, IMAGE_SIZE * s), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for o in scene.objects:
        draw.polygon(shape_polygon(o.shape, o.x * s, o.y * s, o.radius * s), fill=COLORS[o.color])
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def degrade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The look of a flawed picture: blurred, washed out towards a muddy tone, slightly noisy."""
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.8, 1.6))))
    pixels = np.asarray(image, dtype=np.float32)
    mud = np.array([120.0, 110.0, 95.0], dtype=np.float32)
    pixels = mud + (pixels - mud) * rng.uniform(0.45, 0.75)
    pixels = pixels + rng.normal(0, 3, (IMAGE_SIZE, IMAGE_SIZE, 1)).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def sample_picture(caption: Caption, rng: np.random.Generator, flawed: bool, p_mistake: float = 0.6) -> Image.Image:
    """A picture for `caption`: clean and exact, or flawed in looks and, with `p_mistake`, in content."""
    scene = sample_scene(caption, rng)
    if not flawed:
        return render(scene)
    return degrade(render(mistake(scene, rng) if rng.random() < p_mistake else scene), rng)
