# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""GenEval (arXiv 2310.11513) as a metric: 1 where an image shows the objects, counts, colours and positions of its prompt.

The official code finds objects with mmdet 2, which current environments cannot run. Here transformers' Mask2Former with
the same backbone stands behind the same rules (`geneval_rules`), and CLIP ViT-L/14 tells colours as there. Until these
detections are calibrated against GenEval's human annotations its scores do not compare with published ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation

from ...errors import UserError
from ..base import l2_normalize
from ..clip_score import RewardWithClip
from ..preprocessing import normalize_pixels, to_rgb, to_tensor
from .geneval_rules import COLORS, MIN_SCORE, Detection, find_failures, keep_detections


DETECTOR_ID = "facebook/mask2former-swin-small-coco-instance"
SHORT_SIDE, LONG_SIDE, MULTIPLE = 800, 1333, 32  # pixels, of the detector's input
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY = "#999999"  # behind an object whose colour is asked for
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


def find_instances(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, inside: Sequence[int], size: Sequence[int], scale: int = 4
) -> list[Detection]:
    """Mask2Former's output as objects, scored as its authors do: class probability times the mean probability of the mask.

    Class logits are (Q, 81), the last class is none; mask logits (Q, h, w) over the padded input, with `scale` pixels of the
    input per pixel. `inside` and `size` are height and width of the input without padding and of the image, pixels.
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

    Args:
        checkpoint (`str`, *optional*): `DETECTOR` or `DETECTOR,CLIP`, each a Hub id or folder: a Mask2Former with COCO's 80
            classes, and a `CLIPModel`.
    """

    name, unit = "geneval", "1 if GenEval's rules hold, else 0"
    hub_id, size, architecture = DETECTOR_ID, "280 MB", "Mask2FormerForUniversalSegmentation"
    note = (
        "geneval: objects found by transformers' Mask2Former instead of mmdet's; not comparable with published GenEval "
        "scores until calibrated. Its overall score is the mean of categories."
    )

    def __init__(self, checkpoint: str | None = None, short_side: int = SHORT_SIDE, **options):
        super().__init__(checkpoint, **options)
        self.short_side = short_side
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
        for requirements in asked.values():
            unknown = {wanted["class"] for wanted in requirements["include"]} - set(CLASSES)
            if unknown:
                raise UserError(f"--rewards geneval: expected classes of COCO, found {sorted(unknown)[0]!r}")
        self._requirements |= asked
        return True

    def _load(self) -> Mask2FormerForUniversalSegmentation:
        detector = Mask2FormerForUniversalSegmentation.from_pretrained(self._path).float().eval().to(self.device)
        if detector.config.num_labels != len(CLASSES):
            raise UserError(
                f"--reward_checkpoint geneval: expected a detector of COCO's {len(CLASSES)} classes, "
                f"found {detector.config.num_labels}"
            )
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
        crops = [crop_object(to_rgb(image), one) for one in objects]
        embeddings = l2_normalize(self._clip.encode_images(crops))
        return [COLORS[index] for index in (embeddings @ self._classifier(objects[0].label).T).argmax(-1).tolist()]

    def _classifier(self, name: str) -> torch.Tensor:
        if name not in self._classifiers:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            embeddings = l2_normalize(self._clip.encode_prompts(texts)).view(len(COLORS), len(TEMPLATES), -1)
            self._classifiers[name] = l2_normalize(embeddings.mean(1))
        return self._classifiers[name]

    def explain(self, prompt: str, image: Image.Image) -> list[str]:
        """Why an image does not show its prompt; empty if it does."""
        if prompt not in self._requirements:
            raise UserError(f"--rewards geneval: expected a prompt of GenEval's own file, found {prompt!r}")
        requirements = self._requirements[prompt]
        objects = keep_detections(self.detect(image), counting=requirements.get("tag") == "counting")
        return find_failures(objects, requirements, lambda found: self.find_colors(image, found))

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([float(not self.explain(*pair)) for pair in zip(prompts, images)])
