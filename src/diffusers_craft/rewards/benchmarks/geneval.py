# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""GenEval (arXiv 2310.11513) as a metric: 1 where an image shows the objects, counts, colours and positions of its prompt.

The official code finds objects with mmdet 2, which current environments cannot run; here it is transformers' Mask2Former
with the same backbone. Until that is calibrated against GenEval's human annotations, scores do not compare with published ones.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation

from ...errors import UserError
from ..base import l2_normalize
from ..clip_score import RewardWithClip
from ..preprocessing import normalize_pixels, to_rgb, to_tensor


MIN_SCORE, MIN_SCORE_COUNTING = 0.3, 0.9
MAX_OBJECTS = 16  # of a class
SHRINK = 0.1  # of the sum of two objects' sizes: offsets smaller than that are none
MIN_DIRECTION = 0.5  # of the offset's length, along an axis
SHORT_SIDE, LONG_SIDE, MULTIPLE = 800, 1333, 32  # pixels, of the detector's input
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY = "#999999"  # behind an object whose colour is asked for
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
# COCO's 80 classes in the order of its detectors, by the names of GenEval's prompts.
CLASSES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,"
    "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,"
    "toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,"
    "clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)


@dataclass(frozen=True)
class Detection:
    label: str  # its class, by COCO's name
    score: float  # the detector's confidence in [0, 1]
    box: tuple[float, float, float, float]  # left, top, right, bottom, pixels
    mask: np.ndarray | None = None  # (H, W) bool, its pixels


def keep_detections(detections: Sequence[Detection], counting: bool) -> dict[str, list[Detection]]:
    """Class to its objects, the surest first: at most 16, overlapping ones too, with a score above 0.3 (`counting`: 0.9)."""
    kept: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > (MIN_SCORE_COUNTING if counting else MIN_SCORE):
            kept.setdefault(detection.label, []).append(detection)
    return {label: of_class[:MAX_OBJECTS] for label, of_class in kept.items()}


def relative_position(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> set[str]:
    """Where the first object stands relative to the second: none, one or two of GenEval's four relations.

    Each axis of the centres' offset loses a tenth of the two sizes, and counts beyond half of the whole offset's length.
    """
    first, second = (np.asarray(b, dtype=float).reshape(2, 2) for b in (box, other))  # corners (2, 2)
    offset = first.mean(0) - second.mean(0)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - SHRINK * sizes, 0)
    if (np.abs(shrunk) < 1e-3).all():
        return set()
    dx, dy = shrunk / np.linalg.norm(offset)
    found = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {relation for relation, along in found.items() if along > MIN_DIRECTION}


def find_failures(
    objects: Mapping[str, Sequence[Detection]], requirements: Mapping[str, Any], color_of: Callable | None = None
) -> list[str]:
    """Why an image with the `objects` of `keep_detections` does not show its prompt, whose colours `color_of` tells.

    The requirements are GenEval's own: `include` lists what must be there (`class`, `count`, maybe `color`, maybe `position`
    as [relation, index of an earlier requirement]), `exclude` what must not be there as often as `count`.
    """
    failures: list[str] = []
    groups: list[Sequence[Detection] | None] = []  # of each requirement: its objects, None where it failed
    for wanted in requirements.get("include", ()):
        number, name = wanted["count"], wanted["class"]
        found = list(objects.get(name, ()))[:number]
        problem = None
        if len(found) < number:
            problem = f"expected {number} {name}, found {len(found)}"
        elif "color" in wanted:
            if color_of is None:
                raise UserError(f"geneval: expected a colour classifier for {wanted['color']} {name}, found none")
            colors = list(color_of(found))
            if colors.count(wanted["color"]) < number:
                problem = f"expected {number} {wanted['color']} {name}, found {', '.join(colors)}"
        if problem is None and "position" in wanted:
            problem = _wrong_position(found, wanted, groups)
        failures += [problem] if problem else []
        groups.append(None if problem else found)
    for unwanted in requirements.get("exclude", ()):
        number = len(objects.get(unwanted["class"], ()))
        if number >= unwanted["count"]:
            failures.append(f"expected fewer than {unwanted['count']} {unwanted['class']}, found {number}")
    return failures


def _wrong_position(found: list[Detection], wanted: Mapping[str, Any], groups: list) -> str | None:
    """Every object must stand so to every object of the earlier requirement."""
    relation, target = wanted["position"]
    expected = f"expected {wanted['class']} {relation}"
    if groups[target] is None:
        return f"{expected} an object that is not there"
    for one, other in itertools.product(found, groups[target]):
        relations = relative_position(one.box, other.box)
        if relation not in relations:
            return f"{expected} {other.label}, found {' and '.join(sorted(relations)) or 'neither'}"
    return None


def find_instances(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, inside: Sequence[int], size: Sequence[int], scale: int = 4
) -> list[Detection]:
    """Mask2Former's output as objects, scored as its authors do: class probability times the mean probability of the mask.

    Class logits are (Q, 81), the last class is none; mask logits (Q, h, w), `scale` pixels of the padded input per pixel.
    `inside` and `size` are height and width of the input without padding and of the image, pixels.
    """
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    best = probabilities.topk(len(class_logits)).indices
    best = best[probabilities[best] > MIN_SCORE]  # the mask's part only lowers a score
    found = []
    for index in best.tolist():
        query, label = divmod(index, class_logits.shape[-1] - 1)
        logits = F.interpolate(mask_logits[None, query : query + 1], scale_factor=scale, mode="bilinear")
        logits = F.interpolate(logits[..., : inside[0], : inside[1]], size, mode="bilinear")[0, 0]
        mask = logits > 0
        if not mask.any():
            continue
        score = float(probabilities[index] * logits.sigmoid()[mask].mean())
        rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        found.append(Detection(CLASSES[label], score, box, mask.cpu().numpy()))
    return found


def crop_object(image: Image.Image, detection: Detection) -> Image.Image:
    """An object on gray, cropped to its box."""
    if detection.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, GRAY), Image.fromarray(detection.mask))
    return image.crop(tuple(map(round, detection.box)))


class GenEvalReward(RewardWithClip):
    """1.0 where an image shows its prompt by GenEval's rules, else 0.0; for GenEval's own prompts, see `bind`.

    `checkpoint` is `DETECTOR` or `DETECTOR,CLIP`, Hub ids or folders: a Mask2Former of COCO's 80 classes and a `CLIPModel`.
    """

    name, unit = "geneval", "1 if GenEval's rules hold, else 0"
    hub_id, size = "facebook/mask2former-swin-small-coco-instance", "280 MB"
    architecture = "Mask2FormerForUniversalSegmentation"
    short_side = SHORT_SIDE
    note = "geneval: objects found by transformers' Mask2Former instead of mmdet's; not comparable with published GenEval "
    note += "scores until calibrated. Its overall score is the mean of categories."

    def __init__(self, checkpoint: str | None = None, **options):
        super().__init__(checkpoint, **options)
        self._requirements: dict[str, Mapping[str, Any]] = {}
        self._classifiers: dict[str, torch.Tensor] = {}  # class -> (10, D) text embeddings of its colours

    @property
    def checkpoint(self) -> dict[str, Any]:
        return {**super().checkpoint, "colors": self._clip.checkpoint, "calibrated": "no"}

    def bind(self, prompts: Any) -> bool:
        """Learns what the prompts of a set ask for; whether they are GenEval's, i.e. all have an `include`."""
        asked = {row.prompt: row.details.get("metadata") or row.details for row in prompts.rows}
        if not all("include" in requirements for requirements in asked.values()):
            return False
        classes = {wanted["class"] for requirements in asked.values() for wanted in requirements["include"]}
        if unknown := sorted(classes - set(CLASSES)):
            raise UserError(f"--rewards geneval: expected classes of COCO, found {unknown[0]!r}")
        self._requirements |= asked
        return True

    def _load(self) -> Mask2FormerForUniversalSegmentation:
        detector = Mask2FormerForUniversalSegmentation.from_pretrained(self._path).float().eval().to(self.device)
        if (found := detector.config.num_labels) != len(CLASSES):
            expected = f"expected a detector of COCO's {len(CLASSES)} classes"
            raise UserError(f"--reward_checkpoint geneval: {expected}, found {found}")
        return detector

    def release(self) -> None:
        self._classifiers.clear()
        super().release()

    def detect(self, image: Image.Image) -> list[Detection]:
        """All objects of an image with a score above 0.3."""
        image = to_rgb(image)
        scale = min(self.short_side / min(image.size), self.short_side * LONG_SIDE / SHORT_SIDE / max(image.size))
        width, height = (max(1, round(side * scale)) for side in image.size)
        pixels = to_tensor(image.resize((width, height), Image.Resampling.BILINEAR))[None]
        pixels = normalize_pixels(pixels, IMAGENET_MEAN, IMAGENET_STD)
        pixels = F.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE)).to(self.device)
        output = self.model(pixel_values=pixels)  # float32: its thresholds are part of the rules
        classes, masks = output.class_queries_logits[0].float(), output.masks_queries_logits[0].float()
        scale = pixels.shape[-1] // masks.shape[-1]
        return find_instances(classes, masks, (height, width), image.size[::-1], scale)

    def find_colors(self, image: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """The colour of each of several objects of one class, among GenEval's ten."""
        crops, name = [crop_object(to_rgb(image), one) for one in objects], objects[0].label
        embeddings = l2_normalize(self._clip.encode_images(crops))
        if name not in self._classifiers:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            classes = l2_normalize(self._clip.encode_prompts(texts)).view(len(COLORS), len(TEMPLATES), -1)
            self._classifiers[name] = l2_normalize(classes.mean(1))
        return [COLORS[index] for index in (embeddings @ self._classifiers[name].T).argmax(-1).tolist()]

    def explain(self, prompt: str, image: Image.Image) -> list[str]:
        """Why an image does not show its prompt; empty if it does."""
        if prompt not in self._requirements:
            raise UserError(f"--rewards geneval: expected a prompt of GenEval's own file, found {prompt!r}")
        asked = self._requirements[prompt]
        objects = keep_detections(self.detect(image), counting=asked.get("tag") == "counting")
        return find_failures(objects, asked, lambda found: self.find_colors(image, found))

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([float(not self.explain(*pair)) for pair in zip(prompts, images)])
