# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Cosines of prompts in OpenAI's tokens and images: CLIP score (arXiv 2104.08718) and HPS v2.1 (arXiv 2306.09341)."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from open_clip import get_model_config
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from transformers import CLIPTextModelWithProjection

from ..errors import UserError
from .aesthetic import CLIP_ID, CLIP_REVISION, CLIP_SIZE, ClipTowerReward
from .base import CheckpointReward, PromptImageReward
from .checkpoints import file_hash, fitting_state, load_tensors, rest_in_checkpoint_precision
from .preprocessing import fit_and_pad, normalize_pixels


HPS_SHA256 = "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


def load_tokenizer(folder: Path, length: int) -> SimpleTokenizer:
    """OpenAI's tokenizer with the vocabulary in a checkpoint's folder, or its own."""
    vocabulary = {"bpe_path": str(path)} if (path := folder / VOCABULARY).exists() else {}
    return SimpleTokenizer(context_length=length, **vocabulary)


class HPSReward(PromptImageReward):
    """HPS v2.1's official score, the cosine by a ViT-H-14 tuned on human choices; papers print it times 100.

    A model of another size keeps `open_clip_config.json` (`{"model_cfg": ...}`) and, for another vocabulary,
    `bpe_simple_vocab_16e6.txt.gz` beside the file.
    """

    name, unit = "hps_v2.1", "cosine, no logit scale"
    hub_id, revision = "xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a"
    filename, size = "HPS_v2.1_compressed.pt", "1.97 GB"

    def _load(self) -> SimpleNamespace:
        if self._asked == self.hub_id and (found := file_hash(self._path)) != HPS_SHA256:
            message = f"expected sha256 {HPS_SHA256} of {self._path}, found {found}; delete it to retry"
            raise UserError(f"reward {self.name}: {message}")
        path = self._path.parent / "open_clip_config.json"
        config = json.loads(path.read_text())["model_cfg"] if path.exists() else get_model_config("ViT-H-14")
        with torch.device("meta"):
            clip = CLIP(**config)
        state = load_tensors(self.name, self._path)
        with fitting_state(self.name, "HPS v2.1's state dict", self._path):
            clip.load_state_dict(state["state_dict"], assign=True)  # never copied, and as they are (float16)
        # The one tensor that is not in the file: causal attention.
        clip.attn_mask = torch.full(clip.attn_mask.shape, float("-inf")).triu(1)
        blocks = [*clip.visual.transformer.resblocks, *clip.transformer.resblocks]
        rest_in_checkpoint_precision(clip, blocks, clip.token_embedding, autocast=self.dtype != torch.float32)
        # open_clip casts embeddings to the weights' precision; the residual stream stays float32.
        clip.transformer.get_cast_dtype = lambda: torch.float32
        tokenizer = load_tokenizer(self._path.parent, config["text_cfg"]["context_length"])
        pixels = config["vision_cfg"]["image_size"]
        return SimpleNamespace(clip=clip.eval().to(self.device), tokenizer=tokenizer, image_size=pixels)

    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([fit_and_pad(image, self.model.image_size) for image in images])
        with self._autocast():
            return self.model.clip.encode_image(normalize_pixels(pixels).to(self.device))

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        with self._autocast():
            return self.model.clip.encode_text(self.model.tokenizer(prompts).to(self.device))


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
