# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CLIP score (arXiv 2104.08718): the cosine of a prompt in OpenAI's tokens and an image."""

from types import SimpleNamespace

import torch
from PIL import Image
from transformers import CLIPTextModelWithProjection

from ..errors import UserError
from .aesthetic import CLIP_ID, CLIP_REVISION, CLIP_SIZE, ClipTowerReward
from .base import CheckpointReward, PromptImageReward
from .hps import VOCABULARY, load_tokenizer


class TextHalf(CLIPTextModelWithProjection):
    """CLIP's text half, which takes a checkpoint of the whole without a word about the rest."""

    _keys_to_ignore_on_load_unexpected = [r"^vision_", r"^visual_", r"^logit_scale$", r"position_ids$"]


class ClipScoreReward(ClipTowerReward, PromptImageReward):
    """CLIP score on ViT-L/14 as it is mostly printed. Others clip it at 0, or multiply by 2.5 instead of 100.

    Prompts are tokenized as OpenAI's code does (HTML entities resolved, text repaired by ftfy), which transformers'
    tokenizer does not. A model with another vocabulary keeps `bpe_simple_vocab_16e6.txt.gz` beside it.
    """

    name, unit = "clip_score", "100 * cosine, not clipped at 0"
    hub_id, revision, size = CLIP_ID, CLIP_REVISION, CLIP_SIZE

    def _load(self) -> SimpleNamespace:
        text = TextHalf.from_pretrained(self._path).float().eval().to(self.device)
        tokenizer = load_tokenizer(self._path, text.config.max_position_embeddings)
        if tokenizer.vocab_size != text.config.vocab_size:
            raise UserError(
                f"--reward_checkpoint {self.name}: expected a model of {tokenizer.vocab_size} tokens, "
                f"found {text.config.vocab_size} in {self._path}/config.json; its {VOCABULARY} belongs beside it"
            )
        return SimpleNamespace(text=text, tokenizer=tokenizer)

    def _scale(self) -> float:
        return 100.0

    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        return self.tower(images)

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        with self._autocast():
            return self.model.text(input_ids=self.model.tokenizer(prompts).to(self.device)).text_embeds


class RewardWithClip(CheckpointReward):
    """A benchmark's metric of a model of its own and a CLIP: `checkpoint` is `MODEL` or `MODEL,CLIP`."""

    clip_id: str | None = None  # another than that of `clip_score`

    def __init__(self, checkpoint: str | None = None, **options):
        own, _, clip = (checkpoint or "").partition(",")
        super().__init__(own or None, **options)
        # By the metric's name, whose files are missing where CLIP's are.
        kind = type("MetricClip", (ClipScoreReward,), {"name": self.name})
        self._clip = kind(clip or self.clip_id, **options)

    def release(self) -> None:
        self._clip.release()
        super().release()
